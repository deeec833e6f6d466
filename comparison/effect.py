"""Outcome A of the comparison: what others see at equal change (MEASUREMENT: comparison protocol, line 5).

    A = 1/D ∫₀ᴰ gain(d) dd

gain(d) is by how much the judges' probability of the target has risen where a path has changed the image by d = mean
|x′ − x|. A path starts at (0, 0), is linear between its images, and keeps its last value. An image that failed is none
of its images; a path that has no other is worth 0.
"""

import numpy as np


def mean_gain(distance: np.ndarray, gain: np.ndarray, horizon: float) -> np.ndarray:
    """A of P paths from the P×S distances and gains of their images, in any order along the path; a distance of NaN is
    no image. A gain that nobody measured, NaN, leaves its path without an effect.

    `horizon` is D. Exact for the piecewise linear path.
    """
    d, g = _sorted(distance, gain)
    inside = np.minimum(d, horizon)
    width, step = np.diff(inside, axis=1), np.diff(d, axis=1)
    rise = np.divide(np.diff(g, axis=1) * width, step, out=np.zeros_like(width), where=step > 0)
    area = (width * (g[:, :-1] + rise / 2)).sum(1)
    return (area + (horizon - inside[:, -1]) * g[:, -1]) / horizon


def mean_gain_reached(distance: np.ndarray, gain: np.ndarray, horizon: float) -> np.ndarray:
    """The same without interpolation, the control: at d counts the last image of the path within d, and nothing before
    the first."""
    d, g = _sorted(distance, gain)
    edges = np.minimum(np.column_stack([d, np.full(len(d), np.inf)]), horizon)
    return (np.diff(edges, axis=1) * g).sum(1) / horizon


def _sorted(distance: np.ndarray, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P×(S+1) points by distance, the start first; in the place of what is no image a path repeats its last point."""
    missing = np.isnan(distance)
    order = np.where(missing, np.inf, distance).argsort(1, kind="stable")
    d, g = (np.take_along_axis(values, order, 1) for values in (distance, gain))
    last = np.maximum((~missing).sum(1) - 1, 0)[:, None]
    beyond = np.arange(d.shape[1]) > last
    d, g = (np.where(beyond, np.take_along_axis(values, last, 1), values) for values in (d, g))
    d, g = (np.where(missing.all(1, keepdims=True), 0.0, values) for values in (d, g))
    start = np.zeros((len(d), 1))
    return np.hstack([start, d]), np.hstack([start, g])

"""Paired statistics: image-clustered bootstrap, sign-flip permutation, Holm, Wilson (MEASUREMENT: statistics)."""

import functools
from dataclasses import dataclass

import numpy as np

REPLICATES = 10_000
FLIPS = 20_000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; `n` images and the mean of each training seed."""

    mean: float
    low: float
    high: float
    n: int
    by_seed: tuple[float, ...]


def paired_bootstrap(values: np.ndarray, *, key: int = 0, replicates: int = REPLICATES) -> Estimate:
    """Mean of seeds×images values (or paired differences) with a percentile interval.

    Images are the clusters: one resample takes an image with all its seeds, so seeds stay strata. NaN marks a missing
    cell and is left out of its image's mean; an image without any value leaves the sample.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    values = values[:, ~np.isnan(values).all(0)]
    n = values.shape[1]
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, ())
    per_image = np.nanmean(values, axis=0)
    means = _resamples(n, replicates, key) @ per_image
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(per_image.mean().item(), low.item(), high.item(), n, tuple(np.nanmean(values, axis=1).tolist()))


@functools.lru_cache(maxsize=8)
def _resamples(n: int, replicates: int, key: int) -> np.ndarray:
    """replicates×n weights of a bootstrap over n images: how often each is drawn, ÷ n. The same for every mean of n."""
    rng = np.random.Generator(np.random.Philox(key=key))
    drawn = rng.integers(0, n, (replicates, n)) + n * np.arange(replicates)[:, None]
    return np.bincount(drawn.ravel(), minlength=replicates * n).reshape(replicates, n) / n


def half_sample_interval(estimates: np.ndarray) -> tuple[float, float]:
    """95 % interval of estimates[0], made of everything: the quantiles of the same estimate on half-samples, the rest.

    A half-sample without replacement scatters about the full estimate as the full estimate does about the truth. Halves
    on which the estimate does not exist (NaN) are left out.
    """
    low, high = np.nanquantile(estimates[1:], [0.025, 0.975])
    return float(low), float(high)


def sign_flip(differences: np.ndarray, *, key: int = 0, flips: int = FLIPS) -> float:
    """Two-sided p-value of the sign-flip permutation test on per-image differences (the observed one counts).

    NaN marks an image without a difference and is left out.
    """
    differences = np.asarray(differences, dtype=np.float64)
    differences = differences[~np.isnan(differences)]
    rng = np.random.Generator(np.random.Philox(key=key))
    signs = rng.integers(0, 2, (flips, len(differences)), dtype=np.int8) * 2 - 1
    null = np.abs(signs @ differences)
    observed = np.abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    return float((1 + (null >= observed).sum()) / (flips + 1))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm-adjusted p-values, in the order given."""
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values)
    stepped = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted


def wilson(successes: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson 95 % interval of a proportion."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # the ends are exact at 0 and n, where rounding would leave a bound on the wrong side of the share
    low = float(centre - half) if successes > 0 else 0.0
    high = float(centre + half) if successes < n else 1.0
    return low, high

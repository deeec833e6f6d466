"""The pictures of one explained image. No global matplotlib state: a figure is an object, drawn by Agg."""

import base64
import io
import textwrap
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from common.files import atomic_path
from papers.fido.pictures import overlay

MAP_TITLE = "Σ|δ| over the colours"
COLOURS = "magma"  # of the maps


def draw_difference(change: Tensor, path: Path) -> None:
    """Write the map H×W of Σ|δ| over colour channels as a PNG with a colour bar."""
    figure = Figure(figsize=(4.4, 3.6), layout="constrained")
    _map(figure.add_subplot(), change, float(change.max()), MAP_TITLE)
    _save(figure, path)


def draw_saliency(image: Tensor, saliency: Tensor, path: Path) -> None:
    """Write the map H×W in red over the grey image C×H×W as a PNG: the redder, the more a pixel matters."""
    figure = Figure(figsize=(4.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(overlay(image, saliency))
    axes.axis("off")
    _save(figure, path)


def draw_overview(
    original: Tensor,
    reference: Tensor | None,
    counterfactuals: Tensor,
    change: Tensor,
    titles: tuple[str, list[str]],
    path: Path,
) -> None:
    """Write the original C×H×W beside its S counterfactuals S×C×H×W, the maps `change` S×H×W below, as a PNG.

    `titles` holds the title of the original and one per counterfactual; the maps share one colour scale. `reference`,
    where there is one, is the reconstruction that the maps start from, drawn below the original.
    """
    count = len(counterfactuals)
    figure = Figure(figsize=(2.9 * (count + 1), 6.2), layout="constrained")
    grid = figure.subplots(2, count + 1, squeeze=False)
    _picture(grid[0, 0], original, titles[0])
    if reference is None:
        grid[1, 0].axis("off")
    else:
        _picture(grid[1, 0], reference, "its reconstruction, from which the maps start")
    for column in range(count):
        _picture(grid[0, column + 1], counterfactuals[column], titles[1][column])
        drawn = _map(grid[1, column + 1], change[column], float(change.max()), MAP_TITLE, bar=False)
    figure.colorbar(drawn, ax=grid[1, 1:].tolist(), shrink=0.8)
    _save(figure, path)


def picture_uri(image: Tensor) -> str:
    """An image C×H×W in [0, 1], of 1 or 3 channels, as the data URI of an 8-bit PNG of the same size."""
    values = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return _uri(values.squeeze(2) if values.shape[2] == 1 else values)


def map_uri(change: Tensor, top: float) -> str:
    """A map H×W ≥ 0 in the colours of the other maps, from 0 to `top`, as the data URI of a PNG of the same size."""
    share = change.numpy() / (top or 1.0)
    return _uri(colormaps[COLOURS](share, bytes=True)[..., :3])


def _uri(pixels: np.ndarray) -> str:
    """H×W or H×W×3 bytes as a PNG without metadata."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _picture(axes: Axes, image: Tensor, title: str) -> None:
    pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    axes.set_title("\n".join(textwrap.wrap(title, 30)), fontsize=9, parse_math=False)
    axes.axis("off")


def _map(axes: Axes, change: Tensor, top: float, title: str, *, bar: bool = True):
    drawn = axes.imshow(change.numpy(), cmap=COLOURS, vmin=0, vmax=top or 1.0)
    axes.set_title(title, fontsize=9)
    axes.axis("off")
    if bar:
        axes.figure.colorbar(drawn, ax=axes)
    return drawn


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})

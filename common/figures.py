"""One plotting style, image grids, and figures that say what made them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

from common.files import atomic_path, sha256

if TYPE_CHECKING:  # a second and a half of imports for a figure of numbers
    import pandas as pd
    from torch import Tensor

ID_SALT = "visual-counterfactuals"


def style() -> None:
    """The look of every figure; SVG ids are salted so that the same data give the same bytes."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.85)
    plt.rcParams.update(
        {"svg.hashsalt": ID_SALT, "figure.dpi": 110, "axes.titlesize": "medium", "image.composite_image": False}
    )


def save_figure(figure: plt.Figure, path: Path, provenance: dict) -> None:
    """Write `path` as PNG and, beside it, as SVG; both carry `provenance` (rule, parameters, data hashes), no date."""
    text = json.dumps(provenance, sort_keys=True)
    figure.draw_without_rendering()
    box = figure.get_tightbbox().padded(0.1)  # once for both: finding it costs as much as drawing
    for suffix, metadata in (
        (".png", {"Description": text, "Software": None}),
        (".svg", {"Description": text, "Date": None}),
    ):
        with atomic_path(path.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, metadata=metadata, bbox_inches=box)
    plt.close(figure)


def save_figures(
    drawn: dict[str, tuple[plt.Figure, Sequence[Path]]],
    folder: Path,
    rule: str,
    label: Callable[[Path], str] = lambda path: path.name,
) -> None:
    """Write figures by name, each with the files that it was drawn from: those are in its provenance by their `label`,
    with their sha256."""
    hashes = {path: sha256(path) for _, inputs in drawn.values() for path in inputs}
    for name, (figure, inputs) in drawn.items():
        made = {"rule": rule, "figure": name, "inputs": {label(path): hashes[path] for path in inputs}}
        save_figure(figure, folder / f"{name}.png", made)


def error_bars(found: pd.DataFrame, value: str) -> np.ndarray:
    """The interval of a `common.tables.summary` column as the 2×N distances that matplotlib's error bars take."""
    return np.stack([found[value] - found[f"{value}_low"], found[f"{value}_high"] - found[value]]).clip(0)


def drawn_rows(n: int, seed: int, count: int) -> list[int]:
    """Positions of up to `count` of n rows, drawn and not chosen, in order."""
    return sorted(np.random.Generator(np.random.Philox(key=seed)).permutation(n)[:count].tolist())


def image_grid(
    rows: list[list[tuple[np.ndarray, str]]], labels: list[str], cell: float = 1.35, note: str = ""
) -> plt.Figure:
    """A grid of (picture, title) cells with a label per row, and a note below, all in one axes: hundreds of axes take a
    minute to draw.

    A picture is H×W×3 in [0, 1], or H×W for a difference map, drawn on its own scale from 0; None leaves a gap.
    """
    columns, gap, title_height = max(len(row) for row in rows), 0.06, 0.26 / cell
    step = 1 + gap + title_height
    figure = plt.figure(figsize=(cell * (1 + gap) * columns, cell * step * len(rows)))
    axis = figure.add_axes((0, 0, 1, 1))
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        bottom = (len(rows) - 1 - i) * step
        axis.text(-0.08, bottom + 0.5, label, fontsize=7.5, rotation=90, ha="right", va="center", parse_math=False)
        for j, (picture, title) in enumerate(row):
            left = j * (1 + gap)
            if picture is not None:
                extent = (left, left + 1, bottom, bottom + 1)
                axis.imshow(picture, cmap="magma", vmin=0, interpolation="nearest", extent=extent)
            axis.text(left + 0.5, bottom + 1.03, title, fontsize=7.5, ha="center", va="bottom", parse_math=False)
    axis.set(xlim=(0, columns * (1 + gap)), ylim=(0, len(rows) * step))
    axis.set_axis_off()
    figure.text(0, -0.02, note, fontsize=7.5)
    return figure


def picture(image: Tensor) -> np.ndarray:
    """C×H×W in [0, 1] as H×W×3 for `image_grid`."""
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy()


def difference_map(image: Tensor, original: Tensor) -> np.ndarray:
    """Σ_c |x′ − x| as H×W: a change of hue does not cancel as it would in a signed sum."""
    return (image - original).abs().sum(0).numpy()


def with_maximum(change: np.ndarray) -> tuple[np.ndarray, str]:
    """A difference map as a cell of `image_grid`; each is drawn on its own scale, so its title gives the maximum."""
    return change, f"Σ|δ| up to {change.max():.2f}"

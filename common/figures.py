"""One plotting style, image grids, and figures that say what made them."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from torch import Tensor

from common.files import atomic_path

ID_SALT = "visual-counterfactuals"


def style() -> None:
    """The look of every figure; SVG ids are salted so that the same data give the same bytes."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.85)
    plt.rcParams.update(
        {"svg.hashsalt": ID_SALT, "figure.dpi": 110, "savefig.bbox": "tight", "axes.titlesize": "medium"}
    )


def save_figure(figure: plt.Figure, path: Path, provenance: dict) -> None:
    """Write `path` as PNG and, beside it, as SVG; both carry `provenance` (rule, parameters, data hashes), no date."""
    text = json.dumps(provenance, sort_keys=True)
    for suffix, metadata in (
        (".png", {"Description": text, "Software": None}),
        (".svg", {"Description": text, "Date": None}),
    ):
        with atomic_path(path.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, metadata=metadata)
    plt.close(figure)


def image_grid(rows: list[list[tuple[np.ndarray, str]]], labels: list[str], cell: float = 1.35) -> plt.Figure:
    """A grid of (picture, title) cells with a label per row.

    A picture is H×W×3 in [0, 1], or H×W for a difference map, drawn on its own scale from 0; None leaves a gap.
    """
    columns = max(len(row) for row in rows)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(cell * columns + 0.9, (cell + 0.28) * len(rows)), squeeze=False
    )
    for row, label, line in zip(rows, labels, axes, strict=True):
        for axis in line:
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
        for (picture, title), axis in zip(row, line, strict=False):
            if picture is not None:
                axis.imshow(picture, cmap="magma", vmin=0, interpolation="nearest")
            axis.set_title(title, fontsize=7.5, pad=3)
        line[0].set_ylabel(label, fontsize=7.5)
    figure.subplots_adjust(wspace=0.06, hspace=0.28)
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

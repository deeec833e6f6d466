"""Job: the plots of Clarity (spec §4) from its tables.

python -m papers.clarity.figures --results DIR --out DIR
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from common.errors import one_line_errors
from common.figures import save_figures, style
from common.matching import At, read
from common.statistics import paired_bootstrap
from papers.clarity.names import SPACES

CONTROLS = {"class-mean-shift": "class-mean shift", "random-latent": "random", "twin-latent": "towards the twin"}
SHOWN_SPACES = ("p", "pr", "l-mean", "l-sample")
COLOURS = dict(zip(SHOWN_SPACES, sns.color_palette("colorblind", 4), strict=True))
SCORES = {
    "oracle_share": "share of judges that see the target",
    "oracle_svm": "the judge that is no network",
    "im1": "IM1 (lower: more like the target)",
    "knn": "distance to real images of the target",
}


def curve(cells: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean and 95 % interval of a metric at every strength of one cell."""
    strengths = sorted(cells["strength"].unique())
    found = [paired_bootstrap(read(cells, metric, At(strength=strength))) for strength in strengths]
    columns = {"mean": [e.mean for e in found], "low": [e.low for e in found], "high": [e.high for e in found]}
    return pd.DataFrame({"strength": strengths, **columns})


def matched_distance(cells: pd.DataFrame) -> plt.Figure:
    """R-F1: what judges say of the decoded gradient path at matched latent distance r (Q6), a line per system; the
    class-mean shift, which needs no classifier, dashed."""
    worlds = sorted(cells["world"].unique())
    scores = [s for s in SCORES if cells[s].notna().any()]
    figure, axes = plt.subplots(
        len(worlds), len(scores), figsize=(3.6 * len(scores), 3.0 * len(worlds) + 0.5), squeeze=False
    )
    for line, world in zip(axes, worlds, strict=True):
        here = cells[cells["world"] == world]
        largest = max(set(here.loc[here["space"] == "p", "m"]))
        for axis, metric in zip(line, scores, strict=True):
            for space in SHOWN_SPACES:
                for m, width in ((1, 1.0), (largest, 2.2)):
                    cell = here[(here["space"] == space) & (here["m"] == m) & (here["method"] == "direction")]
                    if cell[metric].notna().any():
                        found = curve(cell, metric)
                        label = f"{SPACES[space]}, {'M = 1' if m == 1 else 'largest M'}"
                        axis.plot(found["strength"], found["mean"], color=COLOURS[space], lw=width, label=label)
                        axis.fill_between(
                            found["strength"], found["low"], found["high"], color=COLOURS[space], alpha=0.1
                        )
            for (method, name), dash in zip(CONTROLS.items(), ("--", ":", "-."), strict=True):
                cell = here[here["method"] == method]
                if cell[metric].notna().any():
                    found = curve(cell, metric)
                    axis.plot(found["strength"], found["mean"], color="0.25", ls=dash, lw=1.4, label=name)
            axis.set(title=f"{world}, M = 1, {largest}: {SCORES[metric]}", xlabel="‖z − z₀‖")
            axis.title.set_fontsize("small")
            axis.set_visible(bool(axis.lines))
    handles = {}
    for axis in axes.flat:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.tight_layout()
    figure.legend(handles.values(), handles.keys(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    return figure


def convergence(table: pd.DataFrame) -> plt.Figure:
    """R-F2: cosine between the gradients of two disjoint ensembles of m members (Q3). It rises for any average of
    independent draws, so it describes and decides nothing."""
    plot = sns.relplot(
        table.assign(space=table["space"].map(SPACES)), x="size", y="cosine", hue="space", col="world", kind="line",
        marker="o", errorbar=("pi", 100), height=3.2, aspect=1.2, facet_kws={"sharey": False},
    )  # fmt: skip
    plot.set_titles("{col_name}; band: training seeds")
    plot.set_axis_labels("members m of each ensemble", "cosine of their gradients")
    return plot.figure


def confidence_realism(cells: pd.DataFrame) -> plt.Figure:
    """R-F5: judges and realism against the own threshold τ; what a system believes, and what others see."""
    here = cells[(cells["world"] == "mnist") & (cells["method"] == "search") & cells["space"].isin(SHOWN_SPACES)]
    figure, axes = plt.subplots(1, len(SCORES), figsize=(3.6 * len(SCORES), 3.0), squeeze=False)
    for axis, metric in zip(axes[0], SCORES, strict=True):
        for space in SHOWN_SPACES:
            for m, width in ((1, 1.0), (5, 2.2)):
                cell = here[(here["space"] == space) & (here["m"] == m)]
                if cell[metric].notna().any():
                    found = curve(cell, metric)
                    axis.errorbar(
                        found["strength"], found["mean"], np.stack([found["mean"] - found["low"],
                        found["high"] - found["mean"]]).clip(0), color=COLOURS[space], lw=width, capsize=2, marker="o",
                        ms=3, label=f"{SPACES[space]}, M = {m}",
                    )  # fmt: skip
        axis.set(title=SCORES[metric], xlabel="own threshold τ", xticks=sorted(here["strength"].unique()))
        axis.set_visible(bool(axis.lines))
    figure.tight_layout()
    labelled = max(axes[0], key=lambda axis: len(axis.lines))
    figure.legend(*labelled.get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    return figure


def plateau(gradients: pd.DataFrame, auc: pd.DataFrame) -> plt.Figure:
    """Q1: how long the gradients of p_t and of log p_t are at the start, per system; below the line is a plateau."""
    here = gradients[(gradients["world"] == "mnist") & gradients["space"].isin(SHOWN_SPACES)]
    here = here[here["m"].isin([1, 5])].assign(
        **{
            "∇p": np.log10(here["grad_p"].clip(lower=1e-12)),
            "∇log p": np.log10(here["grad_log_p"].clip(lower=1e-12)),
            "system": here["space"] + ", M = " + here["m"].astype(str),
        }
    )
    long = here.melt(["system"], ["∇p", "∇log p"], "gradient", "log₁₀ norm")
    plot = sns.catplot(
        long, x="log₁₀ norm", y="system", col="gradient", kind="box", sharex=False, height=3.6, aspect=1.2, fliersize=2,
    )  # fmt: skip
    plot.axes[0, 0].axvline(-4, color="C3", lw=1, label="plateau below")
    plot.axes[0, 0].legend(loc="upper left", fontsize=7)
    every = auc[(auc["half"] == 0) & (auc["quantity"] != "chance")].groupby("quantity")["auc"].mean()
    text = "; ".join(f"{quantity} {value:.2f}" for quantity, value in every.dropna().items()) or "no judge passed"
    caption = f"AUC for failure of a short ∇p, or of a small p alone (chance .5; P1: one pixel classifier): {text}"
    plot.figure.text(0.5, -0.03, caption, ha="center", fontsize=8)
    return plot.figure


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of the measured tables")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.png and NAME.svg")
    args = parser.parse_args()
    style()
    cells, gradients, curve_table, auc = (
        args.results / f"{name}.parquet"
        for name in ("cells", "diagnostics/gradients", "diagnostics/convergence", "plateau")
    )
    by_cell, start, halves, failures = (
        table[table["adequate"] == 1] for table in map(pd.read_parquet, (cells, gradients, curve_table, auc))
    )
    drawn = {
        "rf1-matched-distance": (matched_distance(by_cell), [cells]),
        "rf2-convergence": (convergence(halves), [curve_table]),
        "rf5-confidence-realism": (confidence_realism(by_cell), [cells]),
        "plateau": (plateau(start, failures), [gradients, auc]),
    }
    save_figures(drawn, args.out, "clarity_figures")


if __name__ == "__main__":
    main()

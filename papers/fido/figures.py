"""Job: the plots of FIDO from its tables (figures 8, 10, 11, 12, 14, 15 of the paper's review version).

python -m papers.fido.figures --results DIR --out DIR
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from common.errors import one_line_errors
from common.figures import error_bars, save_figures, style
from common.tables import summary
from papers.fido.names import FILLS, title
from papers.fido.tables import circularity_table, main_cell

INFILLS = [f"ssr/{fill}" for fill in ("mean", "blur", "random", "local", "vae", "net")]
CURVES = [*INFILLS, "sdr/net", "bbmp/blur", "bbmp/random", "object", "random"]
PLACES = {
    "area": "area of the MAP mask (BBMP at 5 times λ)",
    "overflow": "MAP mask beyond the box",
    "overflow_matched": "top tenth of the pixels, beyond the box",
    "overflow_object_matched": "top tenth, beyond the object",
}


def overflow(maps: pd.DataFrame) -> plt.Figure:
    """Figure 8: how much of a mask lies outside of the object, at one λ and at one area."""
    order = [*INFILLS, "sdr/mean", "sdr/net", "bbmp/blur", "bbmp/random", "bbmp/net", "rise", "random"]
    table = summary(main_cell(maps), ["method"], list(PLACES)).set_index("method")
    here = table.loc[[name for name in order if name in table.index]]
    figure, axes = plt.subplots(1, len(PLACES), figsize=(15, 0.32 * len(here) + 1), sharey=True)
    for axis, (metric, text) in zip(axes, PLACES.items(), strict=True):
        colours = ["C0" if name.startswith("ssr") else "C1" if name.startswith("sdr") else "0.6" for name in here.index]
        names, error = [title(name) for name in here.index], error_bars(here, metric)
        axis.barh(names, here[metric], xerr=error, error_kw={"lw": 1}, color=colours)
        axis.set(title=text, xlabel="share", xlim=(0, None))
    axes[0].invert_yaxis()  # the first name on top
    figure.tight_layout()
    return figure


def suppression(table: pd.DataFrame) -> plt.Figure:
    """Figure 10, once per evaluating in-fill: pixels in-filled until a share of the class's log-odds is gone."""
    here = main_cell(table)
    fills = [fill for fill in FILLS if (here["fill"] == fill).any()]
    figure, axes = plt.subplots(2, -(-len(fills) // 2), figsize=(3.6 * -(-len(fills) // 2), 6.6), squeeze=False)
    colours = dict(zip(CURVES, [*sns.color_palette("colorblind", 10), "black"], strict=True))
    for axis, fill in zip(axes.flat, fills, strict=False):
        for method in CURVES:
            cell = here[(here["fill"] == fill) & (here["method"] == method)]
            if len(cell):
                found = summary(cell, ["strength"], ["pixels"])
                look = "-" if method.startswith("ssr") else ":" if method == "random" else "--"
                axis.plot(
                    100 * found["strength"],
                    found["pixels"],
                    look,
                    marker=".",
                    color=colours[method],
                    label=title(method),
                )
                axis.fill_between(
                    100 * found["strength"],
                    found["pixels_low"],
                    found["pixels_high"],
                    color=colours[method],
                    alpha=0.12,
                    lw=0,
                )
        judged = here[here["fill"] == fill].dropna(subset="pixels")
        few, scale = judged["image"].nunique(), "log" if len(judged) else "linear"
        axis.set(
            title=f"judge: {FILLS[fill]}, {few} images",
            yscale=scale,
            xlabel="% of the log-odds suppressed",
            ylabel="pixels",
        )
    for axis in axes.flat[len(fills) :]:
        axis.set_axis_off()
    figure.tight_layout()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4, fontsize=8)
    return figure


def circularity(table: pd.DataFrame) -> plt.Figure:
    """The same as ranks: which map needs the fewest pixels depends on the in-fill that judges."""
    here = main_cell(table)
    means = circularity_table(here).set_index("method").filter(regex="_pixels$")
    means.columns = means.columns.str.removesuffix("_pixels")
    order = [name for name in [*CURVES, "sdr/mean", "bbmp/net", "gradient", "rise", "masker"] if name in means.index]
    fast = here.groupby("fill")["method"].nunique()  # slow in-fills judge a few maps only
    columns = [fill for fill in FILLS if fast.get(fill, 0) == fast.max()]
    means = means.reindex(index=order, columns=columns)
    figure, axis = plt.subplots(figsize=(1.1 * len(columns) + 2.5, 0.34 * len(order) + 1.2))
    sns.heatmap(
        means.rank(axis=0),
        annot=means.round(0),
        fmt=".0f",
        cmap="viridis_r",
        cbar=False,
        ax=axis,
        annot_kws={"size": 8},
    )
    axis.set(
        xlabel="in-fill that judges", ylabel="", title="mean pixels to suppress 10–40 %; colour: rank in the column"
    )
    axis.set_yticklabels([title(name) for name in order], rotation=0)
    axis.set_xticklabels([FILLS[fill] for fill in columns], rotation=25, ha="right")
    return figure


def sweeps(table: pd.DataFrame) -> plt.Figure:
    """Figures 11, 12 and 14 as numbers: area and overflow against λ, the mask grid and the weight of TV."""
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.4))
    panels = [
        ("lam", "area", "λ", "area of the MAP mask"),
        ("lam", "overflow_object", "λ", "MAP mask beyond the object"),
        ("grid", "overflow_object_matched", "cells per side", "top tenth beyond the object"),
        ("tv", "overflow_object_matched", "weight of total variation", "top tenth beyond the object"),
    ]
    bases = list(dict.fromkeys(table["method"]))
    for axis, (setting, metric, x, y) in zip(axes, panels, strict=True):
        here = table[table["setting"] == setting]
        values = sorted(here["value"].unique())
        for base, cell in here.groupby("method", sort=False):
            found = summary(cell, ["value"], [metric])
            places = found["value"].map(values.index)  # evenly spaced, whatever the values: one of them may be 0
            look = {"marker": "o", "ms": 4, "capsize": 2, "lw": 1, "color": f"C{bases.index(base)}"}
            axis.errorbar(places, found[metric], error_bars(found, metric), label=title(base), **look)
        axis.set_xticks(range(len(values)), [f"{value:g}" for value in values], fontsize=8)
        axis.set(xlabel=x, ylabel=y)
    figure.tight_layout()
    drawn = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(drawn.values(), drawn, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, fontsize=8)
    return figure


def recovery(table: pd.DataFrame) -> plt.Figure:
    """Figure 15: p(c) of images whose pixels are hidden at random and in-filled."""
    here = table[(table["world"] == "scenes") & (table["classifier"] == "cnn")]
    kinds = {"iid": "half of the pixels, independently", "block": "40 % in one or two rectangles"}
    order = [fill for fill in FILLS if (here["method"] == fill).any()]
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True)
    for axis, (kind, text) in zip(axes, kinds.items(), strict=True):
        cell = here[here["kind"] == kind].groupby(["method", "image"])["probability"].mean().reset_index()
        sns.boxplot(cell, x="method", y="probability", order=order, ax=axis, color="C0", fliersize=2, linewidth=0.8)
        images = cell.groupby("method")["image"].nunique()
        names = [
            FILLS[fill] if images[fill] == images.max() else f"{FILLS[fill]} (n = {images[fill]})" for fill in order
        ]
        axis.set(title=f"{text}; n = {images.max()}", xlabel="", ylabel="p(c), mean over masks and seeds")
        axis.set_xticks(range(len(order)), names, rotation=35, ha="right")
    figure.tight_layout()
    return figure


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of the measured tables")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.png and NAME.svg")
    args = parser.parse_args()
    style()
    files = {name: args.results / f"{name}.parquet" for name in ("maps", "suppression", "recovery", "sweeps")}
    tables = {name: pd.read_parquet(path) for name, path in files.items()}
    drawn = {
        "fig8-overflow": (overflow(tables["maps"]), [files["maps"]]),
        "fig10-suppression": (suppression(tables["suppression"]), [files["suppression"]]),
        "circularity": (circularity(tables["suppression"]), [files["suppression"]]),
        "fig11-12-14-sweeps": (sweeps(tables["sweeps"]), [files["sweeps"]]),
        "fig15-recovery": (recovery(tables["recovery"]), [files["recovery"]]),
    }
    save_figures(drawn, args.out, "fido_figures")


if __name__ == "__main__":
    main()

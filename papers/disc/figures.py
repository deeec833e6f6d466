"""Job: the plots of DISC from its tables.

python -m papers.disc.figures --results DIR --out DIR
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from common.errors import one_line_errors
from common.figures import error_bars, save_figures, style
from common.tables import summary

METHODS = {
    "iso": "ISO",
    "lso": "LSO",
    "statistics": "feature statistics",
    "inr": "INR",
    "inr+duq": "INR + DUQ",
    "iso@inr": "ISO at INR's change",
    "iso@own:inr": "ISO at INR's own change",
    "iso@inr+duq": "ISO at (INR + DUQ)'s change",
    "iso@p:inr+duq": "ISO at (INR + DUQ)'s confidence",
    "inr@inr+duq": "INR at (INR + DUQ)'s change",
}
ANCHORS = {"pixel-ascent": "pixel ascent", "random": "random", "class-mean": "class mean", "twin": "true twin"}
COLOURS = dict(
    zip([*METHODS, *ANCHORS], sns.color_palette("colorblind", 10) + sns.color_palette("dark", 4), strict=True)
)
SCORES = {"oracle_share": "share of judges that see the target", "localisation": "change on the true mask ÷ chance"}


def marked(axis: plt.Axes, found: pd.DataFrame, x: str, y: str, **style_of) -> None:
    """Points with the interval of `y` at the mean of `x`."""
    axis.errorbar(found[x], found[y], error_bars(found, y), capsize=2, lw=1, **style_of)


def equal_change(cells: pd.DataFrame) -> plt.Figure:
    """What judges see, and where the change lies, against how large it is: paths of the methods (τ = .5, .9, whole
    budget), methods at equal change, and the anchors that need no idea. Columns of a world share their change."""
    worlds = [world for world in ("faces-smile", "mnist") if (cells["world"] == world).any()]
    scores = {w: [s for s in SCORES if cells.loc[cells["world"] == w, s].notna().any()] for w in worlds}
    count = sum(map(len, scores.values()))
    figure, axes = plt.subplots(1, max(count, 1), figsize=(4.4 * max(count, 1), 4.0), squeeze=False)
    for axis, (world, score) in zip(axes[0], [(w, s) for w in worlds for s in scores[w]], strict=False):
        here = cells[(cells["world"] == world) & (cells["starts"] == "pairs")]
        for method, name in (METHODS | ANCHORS).items():
            rows = here[here["method"] == method]
            if rows[score].notna().any():
                found, anchor = summary(rows, ["strength"], ["distance", score]), method in ANCHORS
                look = {"ls": "--", "marker": "."} if anchor else {"ls": "-", "marker": "s" if "@" in method else "o"}
                marked(axis, found, "distance", score, color=COLOURS[method], label=name, ms=4, **look)
        axis.set(xlabel="mean |x̄ − x|", title=f"{world}: {SCORES[score]}", xscale="log")
        axis.title.set_fontsize("small")
    handles = {}
    for axis in axes.flat:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.tight_layout()
    figure.legend(handles.values(), handles.keys(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=5, fontsize=8)
    return figure


def students(table: pd.DataFrame) -> plt.Figure:
    """Accuracy of students that saw nothing but counterfactuals, against how far those are from their queries; the
    curve is that of pixel attacks. Below one half they learnt the opposite."""
    figure, axis = plt.subplots(figsize=(6.4, 4.2))
    curve, names = table[table["method"].isin(["identity", "pixel-ascent"])], METHODS | {"twin": "true twin"}
    line = summary(curve, ["strength"], ["distance", "correct"])  # by radius; doing nothing is that of 0
    marked(axis, line, "distance", "correct", color="0.4", ls="--", marker=".", label="pixel ascent")
    for method, cell in table.groupby("method"):
        if method in names:
            found = summary(cell, ["strength"], ["distance", "correct"])
            marked(axis, found, "distance", "correct", color=COLOURS[method], ls="", marker="o", label=names[method])
    real = table.loc[table["method"] == "real", "correct"].mean()
    axis.axhline(real, color="C2", lw=1, label="the real queries")
    axis.axhline(0.5, color="0.7", lw=1, ls=":")
    axis.set(xlabel="mean |x̄ − x| of what they were taught", ylabel="accuracy on real images", ylim=(-0.02, 1.02))
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def robustness(survival: pd.DataFrame) -> plt.Figure:
    """R-b: the share of finished counterfactuals that a classifier still reads as the target after a corruption, at
    τ = .9 (those at equal change at theirs), mean over severities."""
    wanted = ("real", "iso", "iso@p:inr+duq", "iso@inr+duq", "inr", "inr+duq")
    at = survival["strength"].isin([0.9]) | survival["method"].str.contains("@") | (survival["method"] == "real")
    here = survival[at & survival["method"].isin(wanted) & (survival["starts"] == "pairs")]
    each = sorted(name for name in here if name.startswith("survives_"))
    by_image = here.groupby(["method", "image"])[each].mean().reset_index()
    long = by_image.melt(["method", "image"], each, "corruption", "survives")
    long["corruption"] = long["corruption"].str.removeprefix("survives_")
    names = {"real": "real images", **METHODS}
    figure, axis = plt.subplots(figsize=(8.5, 3.6))
    order = [names[method] for method in wanted if (long["method"] == method).any()]
    sns.barplot(
        long.assign(method=long["method"].map(names)), x="corruption", y="survives", hue="method", hue_order=order,
        errorbar=("ci", 95), seed=0, ax=axis,
        err_kws={"linewidth": 1},
    )  # fmt: skip
    axis.set(xlabel="", ylabel="share still read as the target", ylim=(0, 1.02))
    axis.legend(title=None, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def realism(cells: pd.DataFrame, kid: pd.DataFrame) -> plt.Figure:
    """KID of every set against what judges see in it: doing nothing is the most realistic and convinces nobody."""
    here = cells[(cells["world"] == "faces-smile") & (cells["starts"] == "pairs")]
    seen = here.groupby(["method", "strength"])["oracle_share"].mean().reset_index()
    table = seen.merge(kid[(kid["world"] == "faces-smile") & (kid["starts"] == "pairs")], on=["method", "strength"])
    figure, axis = plt.subplots(figsize=(6.8, 4.6))
    names = METHODS | ANCHORS | {"identity": "doing nothing", "nearest-real": "nearest real image"}
    for method, rows in table.groupby("method"):
        if method in names:
            marker = "s" if method in METHODS else "."
            axis.errorbar(
                rows["oracle_share"], rows["kid"], error_bars(rows, "kid"), ls=":", lw=0.8, marker=marker, ms=5,
                capsize=2,
                color=COLOURS.get(method, "0.65" if method == "nearest-real" else "0.1"), label=names[method],
            )  # fmt: skip
    axis.axhline(0, color="0.5", lw=0.8)
    axis.set(xlabel="share of judges that see the target", ylabel="KID (lower: more like real images)")
    axis.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of the measured tables")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.png and NAME.svg")
    args = parser.parse_args()
    style()
    files = {name: args.results / f"{name}.parquet" for name in ("cells", "students", "survival", "kid")}
    tables = {name: pd.read_parquet(path) for name, path in files.items()}
    drawn = {
        "equal-change": (equal_change(tables["cells"]), [files["cells"]]),
        "students": (students(tables["students"]), [files["students"]]),
        "robustness": (robustness(tables["survival"]), [files["survival"]]),
        "realism": (realism(tables["cells"], tables["kid"]), [files["cells"], files["kid"]]),
    }
    save_figures(drawn, args.out, "disc_figures")


if __name__ == "__main__":
    main()

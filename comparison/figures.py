"""Job: the plots of the comparison: both outcomes, whole paths, areas without a target, and the audit of metrics.

python -m comparison.figures --results DIR --out DIR
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from common.errors import one_line_errors
from common.figures import error_bars, save_figures, style
from comparison.entries import ANCHORS

OUTCOMES = {"effect": "A: judges' gain at equal change", "honest": "B: oracle-valid at first own success"}


def _ordered(methods: pd.Series) -> list[str]:
    """Methods first, in the order of the table, then what is trivial."""
    names = list(dict.fromkeys(methods))
    return [name for name in names if name not in ANCHORS] + [name for name in ANCHORS if name in names]


def _cells(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(table[["world", "classifier"]].drop_duplicates().itertuples(index=False, name=None))


def _nothing() -> plt.Figure:
    figure, axis = plt.subplots(figsize=(5, 1))
    axis.set_axis_off()
    axis.text(0, 0.5, "no explained classifier relies on its target factor")
    return figure


def outcomes(table: pd.DataFrame) -> plt.Figure:
    """A and B of every method and classifier, with 95 % intervals over images; what is trivial is grey, and † marks a
    method that answers for a classifier of its own."""
    cells = _cells(table)
    if not cells:
        return _nothing()
    rows = _ordered(table["method"])
    own = set(table.loc[table["mark"].fillna("").str.contains("own classifier"), "method"])
    height = 0.3 * len(rows) + 0.9
    figure, axes = plt.subplots(len(cells), 2, figsize=(10.5, height * len(cells)), sharey=True, squeeze=False)
    for line, (world, classifier) in zip(axes, cells, strict=True):
        here = table[(table["world"] == world) & (table["classifier"] == classifier)].set_index("method")
        for axis, (metric, text) in zip(line, OUTCOMES.items(), strict=True):
            shown = [name for name in rows if name in here.index and here[metric].notna()[name]]
            place = [rows.index(name) for name in shown]
            found = here.loc[shown]
            colours = ["0.55" if name in ANCHORS else "C0" for name in shown]
            axis.errorbar(found[metric], place, xerr=error_bars(found, metric), fmt="none", ecolor="0.4", capsize=2)
            axis.scatter(found[metric], place, c=colours, zorder=3)
            axis.axvline(0, color="0.3", lw=0.8)
            axis.set(title=f"{world}, {classifier}: {text}", yticks=range(len(rows)))
            for gap in set(range(len(rows))) - set(place):
                axis.text(0.06, gap, "n/a", transform=axis.get_yaxis_transform(), fontsize=7, color="0.5", va="center")
    axes[0, 0].set_yticklabels([f"{name} †" if name in own else name for name in rows])  # all axes share them
    axes[0, 0].invert_yaxis()
    figure.tight_layout()
    return figure


def _looks(methods: pd.Series) -> dict[str, dict]:
    """The look of every method, the same in all axes of a figure; what is trivial is grey, each with its own mark."""
    looks = {}
    for k, name in enumerate(_ordered(methods)):
        trivial = {"color": "0.6", "ls": ":", "marker": dict(zip(ANCHORS, "osv^x", strict=True)).get(name)}
        looks[name] = {**(trivial if name in ANCHORS else {"color": f"C{k}", "marker": "o"}), "ms": 4, "label": name}
    return looks


def _legend(figure: plt.Figure, axes: Iterable[plt.Axes]) -> None:
    """One legend below all axes, a line for every method that any of them shows."""
    found = [axis.get_legend_handles_labels() for axis in axes]
    named = {label: line for lines, labels in found for line, label in zip(lines, labels, strict=True)}
    figure.legend(named.values(), named, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=6)


def paths(points: pd.DataFrame, horizon: pd.Series) -> plt.Figure:
    """The mean of every method's path: how far judges go with it, against the change of the image. The line is D, up to
    which outcome A counts."""
    cells, looks = _cells(points), _looks(points["method"])
    if not cells:
        return _nothing()
    figure, axes = plt.subplots(1, len(cells), figsize=(5.2 * len(cells), 4.2), squeeze=False)
    for axis, (world, classifier) in zip(axes[0], cells, strict=True):
        here = points[(points["world"] == world) & (points["classifier"] == classifier)]
        for method in _ordered(here["method"]):
            mean = here[here["method"] == method].groupby("strength")[["distance", "gain"]].mean()
            axis.plot([0, *mean["distance"]], [0, *mean["gain"]], **looks[method])
        axis.axvline(horizon[world], color="0.3", lw=0.8)
        axis.set(title=f"{world}, {classifier}", xlabel="mean |x′ − x|", ylabel="gain of the judges' p(target)")
        farthest = here.groupby(["method", "strength"])["distance"].mean().max()
        axis.set_xlim(0, min(4 * horizon[world], 1.05 * farthest))
    figure.tight_layout()
    _legend(figure, axes[0])
    return figure


def areas(table: pd.DataFrame) -> plt.Figure:
    """Without a target: by how much the probability of the class that was seen falls, in f (above) and in the judges
    (below), where only so much of the image may change."""
    cells, looks = _cells(table), _looks(table["method"])
    figure, axes = plt.subplots(2, len(cells), figsize=(5.2 * len(cells), 6), sharex=True, sharey="row", squeeze=False)
    for column, (world, classifier) in zip(axes.T, cells, strict=True):
        here = table[(table["world"] == world) & (table["classifier"] == classifier)]
        for axis, (metric, who) in zip(column, {"drop_f": "f", "drop": "judges"}.items(), strict=True):
            for method in _ordered(here["method"]):
                mine = here[here["method"] == method].sort_values("area")
                axis.errorbar(mine["area"], mine[metric], error_bars(mine, metric), capsize=2, **looks[method])
            axis.set_ylabel(f"fall of p(source), {who}")
        column[0].set_title(f"{world}, {classifier}")
        column[1].set_xlabel("share of the pixels that change")
    figure.tight_layout()
    _legend(figure, axes[0])
    return figure


def audit(table: pd.DataFrame) -> plt.Figure:
    """In how many pairs of twin, nearest real image, adversarial image and nothing a metric puts the better first."""
    worlds = list(dict.fromkeys(table["world"])) if len(table) else ["no plain net was explained"]
    figure, axes = plt.subplots(1, len(worlds), figsize=(5.4 * len(worlds), 4.4), squeeze=False)
    for axis, world in zip(axes[0], worlds, strict=True):
        if table.empty:
            axis.set(title=world)
            continue
        mine = table[table["world"] == world].sort_values("right", kind="stable")
        error = [(mine["right"] - mine["low"]).clip(lower=0), (mine["high"] - mine["right"]).clip(lower=0)]
        pairs = mine["pairs"].iloc[0]
        colours = ["C0" if right == pairs else "0.7" for right in mine["right"]]
        axis.barh(mine["name"], mine["right"], xerr=error, capsize=2, color=colours)
        axis.axvline(pairs, color="0.3", lw=0.8)
        axis.set(title=world, xlabel=f"pairs in the right order, of {pairs}", xlim=(0, pairs + 0.3))
        axis.grid(axis="y", visible=False)
    figure.tight_layout()
    return figure


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of points, paths .parquet and tables/")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.png and NAME.svg")
    args = parser.parse_args()
    style()
    files = {name: args.results / "tables" / f"{name}.csv" for name in ("outcomes", "areas", "audit")}
    files |= {name: args.results / f"{name}.parquet" for name in ("points", "paths")}
    horizon = pd.read_parquet(files["paths"]).groupby("world")["horizon"].first()
    found, points = pd.read_csv(files["outcomes"]), pd.read_parquet(files["points"])
    targeted = points[points["method"].isin(found.loc[found["effect"].notna(), "method"])]
    drawn = {
        "outcomes": (outcomes(found), [files["outcomes"]]),
        "paths": (paths(targeted, horizon), [files["points"], files["paths"], files["outcomes"]]),
        "areas": (areas(pd.read_csv(files["areas"])), [files["areas"]]),
        "audit": (audit(pd.read_csv(files["audit"])), [files["audit"]]),
    }
    save_figures(drawn, args.out, "comparison_figures")


if __name__ == "__main__":
    main()

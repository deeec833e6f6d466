"""Job: the plots of the comparison: both outcomes, whole paths, areas without a target, and the audit of metrics.

python -m comparison.figures --results DIR --out DIR
"""

import argparse
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


def outcomes(table: pd.DataFrame) -> plt.Figure:
    """A and B of every method and classifier, with 95 % intervals over images; what is trivial is grey, and † marks a
    method that answers for a classifier of its own."""
    cells = _cells(table)
    if not cells:
        figure, axis = plt.subplots(figsize=(5, 1))
        axis.set_axis_off()
        axis.text(0, 0.5, "no explained classifier relies on its target factor")
        return figure
    rows = _ordered(table["method"])
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
            marked = [f"{name} †" if "own classifier" in str(here["mark"].get(name)) else name for name in rows]
            axis.set_yticklabels(marked)
    axes[0, 0].invert_yaxis()
    figure.tight_layout()
    return figure


def paths(points: pd.DataFrame, horizon: pd.Series) -> plt.Figure:
    """The mean of every method's path: how far judges go with it, against the change of the image. The line is D, up to
    which outcome A counts."""
    cells = _cells(points)
    figure, axes = plt.subplots(1, len(cells), figsize=(5.2 * len(cells), 4.2), squeeze=False)
    for axis, (world, classifier) in zip(axes[0], cells, strict=True):
        here = points[(points["world"] == world) & (points["classifier"] == classifier)]
        for k, method in enumerate(_ordered(here["method"])):
            mean = here[here["method"] == method].groupby("strength")[["distance", "gain"]].mean()
            trivial = method in ANCHORS
            style_of = (
                {"color": "0.6", "ls": ":", "marker": "osv^x"[ANCHORS.index(method)]} if trivial else {"color": f"C{k}"}
            )
            axis.plot([0, *mean["distance"]], [0, *mean["gain"]], ms=4, **{"marker": "o", **style_of}, label=method)
        axis.axvline(horizon[world], color="0.3", lw=0.8)
        axis.set(title=f"{world}, {classifier}", xlabel="mean |x′ − x|", ylabel="gain of the judges' p(target)")
        axis.set_xlim(0, 4 * horizon[world])
    figure.tight_layout()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=6)
    return figure


def areas(table: pd.DataFrame) -> plt.Figure:
    """Without a target: by how much the probability of the class that was seen falls, in f (above) and in the judges
    (below), where only so much of the image may change."""
    cells = _cells(table)
    figure, axes = plt.subplots(2, len(cells), figsize=(5.2 * len(cells), 6), sharex=True, sharey="row", squeeze=False)
    for column, (world, classifier) in zip(axes.T, cells, strict=True):
        here = table[(table["world"] == world) & (table["classifier"] == classifier)]
        for axis, (metric, who) in zip(column, {"drop_f": "f", "drop": "judges"}.items(), strict=True):
            for k, method in enumerate(_ordered(here["method"])):
                mine = here[here["method"] == method].sort_values("area")
                colour = {"color": "0.6", "ls": ":"} if method in ANCHORS else {"color": f"C{k}"}
                axis.errorbar(
                    mine["area"],
                    mine[metric],
                    error_bars(mine, metric),
                    capsize=2,
                    marker="o",
                    ms=3,
                    label=method,
                    **colour,
                )
            axis.set_ylabel(f"fall of p(source), {who}")
        column[0].set_title(f"{world}, {classifier}")
        column[1].set_xlabel("share of the pixels that change")
    figure.tight_layout()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=6)
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
    drawn = {
        "outcomes": (outcomes(pd.read_csv(files["outcomes"])), [files["outcomes"]]),
        "paths": (paths(pd.read_parquet(files["points"]), horizon), [files["points"], files["paths"]]),
        "areas": (areas(pd.read_csv(files["areas"])), [files["areas"]]),
        "audit": (audit(pd.read_csv(files["audit"])), [files["audit"]]),
    }
    save_figures(drawn, args.out, "comparison_figures")


if __name__ == "__main__":
    main()

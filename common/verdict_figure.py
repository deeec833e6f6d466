"""Job: the verdicts of a paper, every test at a glance.

python -m common.verdict_figure --tests T.csv --out F.png
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from common.claims import ROUNDING
from common.errors import one_line_errors
from common.figures import save_figure, style
from common.files import sha256

ROWS = 50  # tests in a column, at most


def verdict_figure(tests: pd.DataFrame) -> plt.Figure:
    """Every test's mean with its interval, coloured by what it decided, in as many columns as it takes. Each row has
    its own scale, from 0 to the farthest of interval and decision line; the numbers stand beside it."""
    judged = tests["verdict"].isin(["supported", "contradicted", "inconclusive"]) & (tests["seeds"].fillna("") != "")
    shown = tests[judged & tests["mean"].notna()].reset_index(drop=True)
    numbers = ["mean", "low", "high"]
    shown[numbers] = shown[numbers].mask(shown[numbers].abs() < ROUNDING, 0.0)  # what decides nothing
    columns = max(1, math.ceil(len(shown) / ROWS))
    rows = math.ceil(len(shown) / columns)
    figure, axes = plt.subplots(
        1, columns, figsize=(2 + 11 * columns, 0.24 * rows + 1.2), squeeze=False, layout="constrained"
    )
    if shown.empty:
        axes[0, 0].set_axis_off()
        axes[0, 0].text(0, 0.5, "no test has rows")
        return figure
    for k, axis in enumerate(axes[0]):
        _draw(axis, shown[k * rows : (k + 1) * rows].reset_index(drop=True))
    named = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named, loc="outside upper center", ncols=3, frameon=False)
    figure.supxlabel(
        "mean and 95 % interval, each row on its own scale; | marks a bound or margin; * the training seeds disagree;\n"
        "tests of a maximum are in tests.csv",
        fontsize=8,
    )
    return figure


def _draw(axis: plt.Axes, shown: pd.DataFrame) -> None:
    """The tests of one column."""
    y = np.arange(len(shown))
    scale = shown[["low", "high", "line"]].abs().max(axis=1).clip(lower=1e-12)
    low, mean, high, line = (shown[name] / scale for name in ("low", "mean", "high", "line"))
    for verdict, colour in {"supported": "C2", "contradicted": "C3", "inconclusive": "C7"}.items():
        rows = shown["verdict"] == verdict
        if not rows.any():
            continue
        error = np.stack([mean - low, high - mean]).clip(0)[:, rows]
        axis.errorbar(mean[rows], y[rows], xerr=error, fmt="o", ms=4, capsize=2.5, color=colour, label=verdict)
    axis.axvline(0, color="0.3", lw=0.8)
    marked = shown["line"] != 0
    for sign in (1, -1):
        both = marked & ((sign == 1) | (shown["kind"] == "parity"))
        axis.plot(sign * line[both], y[both], "|", color="0.2", ms=11, mew=1.4)
    labels = shown["claim"] + "  " + shown["test"] + shown["role"].map({"primary": "", "control": " (control)"})
    axis.set(yticks=y, yticklabels=labels, ylim=(len(shown) - 0.4, -0.6), xlim=(-1.15, 1.15), xticks=[0])
    axis.tick_params(axis="y", labelsize=7)
    for row, test in shown.iterrows():
        clear = not test["low"] <= test["line"] <= test["high"] and test["kind"] != "parity"
        mark = " *" if test["verdict"] == "inconclusive" and clear else ""
        axis.annotate(
            f"{test['mean']:.3g} [{test['low']:.3g}, {test['high']:.3g}], n = {test['n']}{mark}",
            (1.02, row), xycoords=("axes fraction", "data"), va="center", fontsize=7,
        )  # fmt: skip
    axis.grid(axis="x", visible=False)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, required=True, help="tables/tests.csv of a paper")
    parser.add_argument("--out", type=Path, required=True, help="the PNG; its SVG stands beside it")
    args = parser.parse_args()
    style()
    provenance = {"rule": "verdict_figure", "inputs": {args.tests.name: sha256(args.tests)}}
    save_figure(verdict_figure(pd.read_csv(args.tests)), args.out, provenance)


if __name__ == "__main__":
    main()

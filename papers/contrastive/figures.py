"""Job: the plot of the scores (slots S-C and S-D of the contrastive spec).

python -m papers.contrastive.figures --tables DIR --out DIR
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from common.errors import one_line_errors
from common.figures import save_figures, style

SCORES = {"nec": "NEC: would lose it", "suf": "SUF: would gain it"}
FLOORS = {"move": "v", "mirror": "s", "blur": "o", "random": "x"}


def scores(table: pd.DataFrame) -> plt.Figure:
    """Necessity and sufficiency of every attribute for every decision, `clamp_others`, intention to treat, first
    training seed with its interval; dots are the other seeds, grey marks what changes no label or moves at random."""
    here = table[(table["protocol"] == "itt") & table["context"].isna()]
    decisions, first = sorted(here["decision"].unique()), here["seed"].min()
    figure, axes = plt.subplots(1, len(decisions), figsize=(3.6 * len(decisions), 3.4), sharey=True, squeeze=False)
    for axis, decision in zip(axes[0], decisions, strict=True):
        cell = here[here["decision"] == decision]
        attributes = sorted(cell["attribute"].unique())
        for j, (score, text) in enumerate(SCORES.items()):
            for i, attribute in enumerate(attributes):
                rows = cell[(cell["attribute"] == attribute) & (cell["score"] == score)]
                place, edited = i + 0.36 * (j - 0.5), rows[rows["regime"] == "clamp_others"].set_index("seed")
                one = edited.loc[first]
                error = np.array([[one["value"] - one["low"]], [one["high"] - one["value"]]]).clip(0)
                label = text if i == 0 else None
                axis.bar(place, one["value"], 0.32, yerr=error, color=f"C{j}", label=label, capsize=3)
                rest = edited.drop(first)["value"]
                axis.plot([place] * len(rest), rest, ".", color="black", ms=5, zorder=3)
                for regime, marker in FLOORS.items():
                    floor = rows[(rows["regime"] == regime) & (rows["seed"] == first)]["value"]
                    label = regime if i == j == 0 else None
                    axis.plot([place + 0.1] * len(floor), floor, marker, color="0.45", ms=4, label=label, zorder=3)
        axis.set_xticks(range(len(attributes)), attributes)
        axis.set_xlim(-0.5, len(attributes) - 0.5)
        axis.set(title=f"decision: {decision}", ylim=(0, 1), xlabel="attribute")
    axes[0, 0].set_ylabel("probability")
    figure.tight_layout()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=6)
    return figure


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True, help="folder of scores.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.png and NAME.svg")
    args = parser.parse_args()
    style()
    file = args.tables / "scores.csv"
    save_figures({"scores": (scores(pd.read_csv(file)), [file])}, args.out, "contrastive_figures")


if __name__ == "__main__":
    main()

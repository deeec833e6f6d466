"""Job: the plots of scores, of their distance from the truth, and of λ (slots S-C and S-D of the contrastive spec).

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
FLOORS = {"move": "v", "mirror": "s", "blur": "o", "stay": "D", "random": "x"}
ORDER = ("old", "gray", "glasses", "smile", "mustache")
RULES = ("majority", "exclusive")
# regimes in the order of the plot of errors, and what they are called
REGIMES = {
    "clamp_others": "S, others held", "clamp_others@floor": "the same, on the baselines' latents",
    "free": "S, others free", "clamp_nondesc": "S, descendants free (total effects)", "linear": "linear SVM",
    "conditional": "linear, conditional", "latent-shift": "Latent Shift", "optimised": "optimised per image",
    "random": "random shift", "zero": "all scores 0", "association": "association",
    "unadjusted": "observed, no back door", "adjusted": "observed, adjusted",
}  # fmt: skip


def scores(table: pd.DataFrame) -> plt.Figure:
    """The packaged face GAN: necessity and sufficiency of every attribute for every decision, first training seed with
    its interval; dots are the other seeds, grey marks what changes no label or moves at random."""
    here = table[(table["system"] == "face-gan") & (table["protocol"] == "itt") & table["context"].isna()]
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
                label = "other seeds" if i == j == 0 else None
                axis.plot([place] * len(rest), rest, ".", color="black", ms=5, zorder=3, label=label)
                for regime, marker in FLOORS.items():
                    floor = rows[(rows["regime"] == regime) & (rows["seed"] == first)]["value"]
                    label = regime if i == j == 0 else None
                    axis.plot([place + 0.1] * len(floor), floor, marker, color="0.45", ms=4, label=label, zorder=3)
        axis.set_xticks(range(len(attributes)), attributes)
        axis.set_xlim(-0.5, len(attributes) - 0.5)
        axis.set(title=f"decision: {decision}", ylim=(0, 1), xlabel="attribute")
    axes[0, 0].set_ylabel("probability")
    figure.tight_layout()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=8)
    figure.text(0.5, -0.12, "a mark that is missing rests on fewer than 30 units", ha="center", fontsize=7.5)
    return figure


def truth(table: pd.DataFrame) -> plt.Figure:
    """Rendered faces: the scores of S beside their exact values, and NEC against SUF. Dots are training seeds, bars
    their mean, black lines the truth."""
    here = table[table["system"] == "faces"]
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), width_ratios=[1.25, 1, 1.25, 1])
    for axis, contrast, rule in zip(axes[::2], axes[1::2], RULES, strict=True):
        cell = here[here["decision"] == rule]
        for j, (score, text) in enumerate(SCORES.items()):
            for i, attribute in enumerate(ORDER):
                rows = cell[(cell["attribute"] == attribute) & (cell["score"] == score)]
                held, free = (rows[rows["regime"] == regime] for regime in ("clamp_others", "free"))
                place, first = i + 0.36 * (j - 0.5), i == 0
                axis.bar(place, held["value"].mean(), 0.32, color=f"C{j}", label=text if first else None)
                label = "training seeds" if first and not j else None
                axis.plot([place] * len(held), held["value"], ".", color="black", ms=5, zorder=3, label=label)
                label = "others free" if first and not j else None
                axis.plot([place + 0.09] * len(free), free["value"], "x", color="0.45", ms=4, zorder=3, label=label)
                exact, ends = held["exact"].iloc[0], (place - 0.17, place + 0.17)
                axis.plot(ends, [exact] * 2, color="black", lw=2, label="exact" if first and not j else None)
        axis.set_xticks(range(len(ORDER)), ORDER)
        axis.set(title=f"{rule} rule", ylim=(0, 1.02), ylabel="probability")
        held = cell[cell["regime"] == "clamp_others"]
        for i, attribute in enumerate(ORDER):
            rows = held[held["attribute"] == attribute]
            nec, suf = (rows[rows["score"] == score] for score in ("nec", "suf"))
            contrast.plot(nec["value"], suf["value"], ".", color=f"C{i}", ms=7, label=attribute)
            contrast.plot(nec["exact"].iloc[:1], suf["exact"].iloc[:1], "+", color=f"C{i}", ms=12, mew=2)
        contrast.plot([0, 1], [0, 1], color="0.8", lw=1, zorder=0)
        contrast.set(title="contrast, + exact", xlabel="NEC", ylabel="SUF", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    figure.tight_layout()
    for axis, place in ((axes[0], 0.25), (axes[1], 0.72)):
        figure.legend(*axis.get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(place, 0), ncols=5)
    return figure


def errors(table: pd.DataFrame) -> plt.Figure:
    """Rendered faces: the mean absolute error of NEC, SUF and NESUF over five attributes against the exact truth, by
    regime; bars are the mean of the training seeds, dots the seeds."""
    here = table[(table["system"] == "faces") & (table["truth"] == "exact") & (table["over"] == "all")]
    figure, axes = plt.subplots(1, len(RULES), figsize=(9.5, 3.8), sharey=True)
    for axis, rule in zip(axes, RULES, strict=True):
        cell = here[here["decision"] == rule]
        for i, regime in enumerate(REGIMES):
            found = cell.loc[cell["regime"] == regime, "error"]
            ours = regime.startswith(("clamp", "free"))
            axis.barh(i, found.mean(), color="C0" if ours else "0.75")
            axis.plot(found, [i] * len(found), ".", color="black", ms=5)
        axis.set_yticks(range(len(REGIMES)), REGIMES.values())
        axis.set(title=f"{rule} rule", xlabel="mean absolute error of the scores")
        axis.grid(axis="y", visible=False)
    axes[0].invert_yaxis()
    figure.tight_layout()
    return figure


def sweep(table: pd.DataFrame) -> plt.Figure:
    """λ against the length of the shift and against validity; every line is a label in the mean over training seeds."""
    systems = sorted(table["system"].unique(), reverse=True)
    figure, axes = plt.subplots(2, len(systems), figsize=(4.2 * len(systems), 5), sharex="col", squeeze=False)
    for column, system in zip(axes.T, systems, strict=True):
        here = table[table["system"] == system]
        judge = "audited" if here["audited"].notna().all() else "reached"
        for attribute, part in here.groupby("attribute"):
            mean = part.groupby("lam")[[judge, "length"]].mean()
            for axis, value in zip(column, ("length", judge), strict=True):
                axis.plot(range(len(mean)), mean[value], "o-", label=attribute)
        lams = sorted(here["lam"].unique())
        column[1].set_xticks(range(len(lams)), [f"{lam:g}" for lam in lams])
        column[0].set(title=f"{system}, trained briefly", ylabel="length of the shift", yscale="log")
        column[0].yaxis.set_major_formatter("{x:g}")
        column[0].yaxis.set_minor_formatter("")
        by = "auditor" if judge == "audited" else "classifier itself"
        column[1].set(xlabel="λ", ylabel=f"validity, by the {by}", ylim=(-0.03, 1.03))
        column[1].legend(fontsize=7.5)
    figure.tight_layout()
    return figure


PLOTS = {
    "scores": (scores, "scores"),
    "truth": (truth, "truth"),
    "errors": (errors, "errors"),
    "sweep": (sweep, "sweep"),
}


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.png and NAME.svg")
    args = parser.parse_args()
    style()
    files = {name: args.tables / f"{table}.csv" for name, (_, table) in PLOTS.items()}
    drawn = {name: (draw(pd.read_csv(files[name])), [files[name]]) for name, (draw, _) in PLOTS.items()}
    save_figures(drawn, args.out, "contrastive_figures")


if __name__ == "__main__":
    main()

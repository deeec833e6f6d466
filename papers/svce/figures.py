"""Job: the figures of Sparse VCE from shards, rows and tables.

python -m papers.svce.figures --robust B... --plain B --rows R --methods M --tests T --out DIR
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch

from common.batches import Shard, read_shard
from common.data import datasets
from common.errors import one_line_errors
from common.figures import difference_map, image_grid, picture, save_figure, style, with_maximum
from common.files import sha256

PATHS = {"apgd/l1/k75": "l1 (APGD)", "afw-b/l1.5/k75": "l1.5 (AFW)", "apgd/l2/k75": "l2 (APGD)"}
ANCHORS = {"random": "random", "class-mean": "class mean", "nearest-real": "nearest real", "twin": "true twin"}
THRESHOLDED = {"apgd/l2/k75/thresholded": "l2 cut to l1.5's pixels"}
OPTIMISERS = {"afw-a": "AFW, variant A", "afw-b": "AFW, variant B", "apgd": "APGD", "fw": "plain FW"}


def grid(shard: Shard, data: Path, pairs_shown: int = 6, radii_shown: int = 3) -> plt.Figure:
    """Grids in the layout of spec §4: the original with predicted class, then l1.5 counterfactuals at three radii with
    target confidence, each with its difference map; the l1 and l2 counterfactuals at the largest of them."""
    names = datasets.world(shard.world).class_names
    originals = datasets.load_ids(shard.world, shard.ids[:pairs_shown], data).images
    main, others = shard.batches["afw-b/l1.5/k75"], ("apgd/l1/k75", "apgd/l2/k75")
    columns = np.linspace(1, len(main.strengths) - 1, radii_shown).round().astype(int)
    rows, labels = [], []
    for i, original in enumerate(originals):
        line = [(picture(original), f"sees {names[int(shard.source_prediction[i])]}")]
        for j in columns:
            confidence = main.confidence[i, j].item()
            line.append((picture(main.images[i, j]), f"l1.5, ε = {main.strengths[j]:g}: p = {confidence:.2f}"))
            line.append(with_maximum(difference_map(main.images[i, j], original)))
        for method in others:
            batch = shard.batches[method]
            image, confidence = batch.images[i, -1], batch.confidence[i, -1].item()
            title = f"{method.split('/')[1]}, ε = {batch.strengths[-1]:g}: p = {confidence:.2f}"
            line += [(picture(image), title), with_maximum(difference_map(image, original))]
        rows.append(line)
        labels.append(f"→ {names[int(shard.target[i])]}")
    return image_grid(rows, labels, cell=1.55)


def optimisers(shards: list[Shard]) -> plt.Figure:
    """Best log-confidence against iterations, for every traced method, as the distance to the best of all methods."""
    curves = []
    for shard in shards:
        for norm in sorted({method.split("/")[1] for method in shard.traces}):
            methods = [method for method in shard.traces if method.split("/")[1] == norm]
            shared = set.intersection(*(set(shard.batches[method].strengths) for method in methods))
            radius = max(shared)
            traces = {m: shard.traces[m][:, shard.batches[m].strengths.index(radius)] for m in methods}
            best = torch.stack([trace[:, -1] for trace in traces.values()]).amax(0)
            for method, trace in traces.items():
                gap = (best[:, None] - trace).mean(0).numpy()
                facts = {
                    "ball": f"{norm}, ε = {radius:g}",
                    "seed": shard.seed,
                    "optimiser": OPTIMISERS[method.split("/")[0]],
                }
                curves.append(pd.DataFrame({"iteration": np.arange(len(gap)), "gap": gap, **facts}))
    table = pd.concat(curves, ignore_index=True)
    plot = sns.relplot(
        table,
        x="iteration",
        y="gap",
        hue="optimiser",
        col="ball",
        kind="line",
        errorbar=("pi", 100),
        height=3.2,
        aspect=1.3,
    )
    plot.set(yscale="log", ylim=(1e-4, None), ylabel="mean gap of log p to the best optimiser")
    plot.set_titles("{col_name}; band: training seeds")
    return plot.figure


def sparsity(methods: pd.DataFrame) -> plt.Figure:
    """Sparsity, visibly changed pixels, place and honesty at matched confidence, with 95 % intervals."""
    shown = PATHS | THRESHOLDED | ANCHORS
    cells = [("scenes", "l2at"), ("scenes", "standard"), ("scenes-tied", "l2at")]
    metrics = {"hoyer": "Hoyer sparsity", "pixel_share": "pixels with Σ|δ| > 0.1", "on_mask": "change on the object",
               "honest": "first success is oracle-valid"}  # fmt: skip
    figure, axes = plt.subplots(1, len(metrics), figsize=(13, 3.6), sharey=True)
    for axis, (metric, title) in zip(axes, metrics.items(), strict=True):
        for k, (world, classifier) in enumerate(cells):
            cell = methods[(methods["world"] == world) & (methods["classifier"] == classifier)].set_index("method")
            label = f"{world}, {classifier}" + (" (left out: reliance on the class factor < .8)" if cell.empty else "")
            cell = cell.reindex(list(shown))
            y = np.arange(len(shown)) + 0.22 * (k - 1)
            error = np.stack([cell[metric] - cell[f"{metric}_low"], cell[f"{metric}_high"] - cell[metric]]).clip(0)
            axis.errorbar(cell[metric], y, xerr=error, fmt="o", ms=4, capsize=2, label=label)
        axis.set(title=title, xlim=(-0.03, 1.03))
    axes[0].set(yticks=range(len(shown)), yticklabels=shown.values())
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=3, bbox_to_anchor=(0.5, -0.09))
    return figure


def radius(rows: pd.DataFrame) -> plt.Figure:
    """Confidence and oracle validity against the distance of the path, per method and classifier."""
    chosen = rows[rows["method"].isin([*PATHS, "random", "twin"])]
    table = chosen.groupby(["world", "classifier", "method", "strength"], as_index=False)[
        ["distance", "confidence", "oracle_valid"]
    ].mean()
    table["method"] = table["method"].map(PATHS | ANCHORS)
    table["cell"] = table["world"] + ", " + table["classifier"]
    long = table.melt(["cell", "method", "distance"], ["confidence", "oracle_valid"], "judge", "share")
    long["judge"] = long["judge"].map({"confidence": "own confidence", "oracle_valid": "oracle-valid"})
    plot = sns.relplot(
        long,
        x="distance",
        y="share",
        hue="method",
        col="cell",
        row="judge",
        kind="line",
        marker="o",
        height=2.6,
        aspect=1.35,
    )
    plot.set(xlim=(0, None), ylim=(-0.02, 1.02))
    plot.set_titles("{col_name}: {row_name}")
    plot.set_axis_labels("mean |x′ − x|", "mean over pairs and seeds")
    return plot.figure


def sparsity_confidence(rows: pd.DataFrame) -> plt.Figure:
    """Sparsity and place against own confidence along the path of radii, per method and classifier."""
    chosen = rows[rows["method"].isin(PATHS)]
    cells = ["world", "classifier", "method", "strength"]
    table = chosen.groupby(cells, as_index=False)[["confidence", "hoyer", "on_mask"]].mean()
    table["method"] = table["method"].map(PATHS)
    table["cell"] = table["world"] + ", " + table["classifier"]
    long = table.melt(["cell", "method", "confidence"], ["hoyer", "on_mask"], "metric", "value")
    long["metric"] = long["metric"].map({"hoyer": "Hoyer sparsity", "on_mask": "change on the object"})
    plot = sns.relplot(
        long, x="confidence", y="value", hue="method", col="cell", row="metric", kind="line", marker="o",
        height=2.6, aspect=1.35, facet_kws={"sharey": "row"},
    )  # fmt: skip
    plot.set(xlim=(-0.02, 1.02), ylim=(0, 1))
    plot.set_titles("{col_name}: {row_name}")
    plot.set_axis_labels("own confidence in the target, mean", "mean over pairs and seeds")
    return plot.figure


def verdicts(tests: pd.DataFrame) -> plt.Figure:
    """Every test's difference with its interval on its own scale, coloured by what it decided."""
    shown = tests[
        tests["verdict"].isin(["supported", "contradicted", "inconclusive"]) & (tests["seeds"].fillna("") != "")
    ]
    if shown.empty:
        figure, axis = plt.subplots(figsize=(8, 1))
        axis.set_axis_off()
        axis.text(0, 0.5, "no test has rows: no classifier relies on the class factor (reliance < .8)")
        return figure
    colours = {"supported": "C2", "contradicted": "C3", "inconclusive": "C7"}
    figure, axes = plt.subplots(len(shown), 1, figsize=(8, 0.5 * len(shown) + 0.6), squeeze=False)
    for axis, (_, test) in zip(axes[:, 0], shown.iterrows(), strict=True):
        axis.errorbar(
            test["mean"], 0, xerr=[[test["mean"] - test["low"]], [test["high"] - test["mean"]]], fmt="o", capsize=3,
            color=colours[test["verdict"]],
        )  # fmt: skip
        axis.axvline(0, color="0.3", lw=0.8)
        for line in {-test["line"], test["line"]} if test["kind"] == "parity" else {test["line"]}:
            axis.axvline(line, color="0.3", lw=0.8, ls="--")
        axis.set(yticks=[0], yticklabels=[f"{test['claim']} {test['test']} ({test['role']})"], ylim=(-1, 1))
        axis.annotate(
            f"{test['verdict']}, n = {test['n']}", (1.01, 0.5), xycoords="axes fraction", va="center", fontsize=8
        )
        axis.tick_params(axis="x", labelsize=7)
    height = figure.get_figheight()
    figure.subplots_adjust(hspace=1.5, top=1 - 0.45 / height, bottom=0.3 / height)
    figure.suptitle(
        "Tests: mean and 95 % interval (a − b, or the share that must stay below the dashed line)", fontsize=9, y=1
    )
    return figure


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--robust", type=Path, nargs="+", required=True, help="shards of the robust classifier, one a seed"
    )
    parser.add_argument("--plain", type=Path, required=True, help="a shard of the plain classifier")
    parser.add_argument("--rows", type=Path, required=True, help="the long table")
    parser.add_argument("--methods", type=Path, required=True, help="the table of methods at matched confidence")
    parser.add_argument("--tests", type=Path, required=True, help="the table of test outcomes")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.png and NAME.svg")
    args = parser.parse_args()
    style()
    robust = [read_shard(path) for path in args.robust]
    figures = {
        "grid": (grid(robust[0], args.data), args.robust[:1]),
        "grid-plain": (grid(read_shard(args.plain), args.data), [args.plain]),
        "optimisers": (optimisers(robust), args.robust),
        "sparsity": (sparsity(pd.read_csv(args.methods)), [args.methods]),
        "sparsity-confidence": (sparsity_confidence(pd.read_parquet(args.rows)), [args.rows]),
        "radius": (radius(pd.read_parquet(args.rows)), [args.rows]),
        "verdicts": (verdicts(pd.read_csv(args.tests)), [args.tests]),
    }
    for name, (figure, inputs) in figures.items():
        hashes = {path.name: sha256(path) for path in inputs}
        save_figure(figure, args.out / f"{name}.png", {"rule": "svce_figures", "figure": name, "inputs": hashes})


if __name__ == "__main__":
    main()

"""Job: the plots of Sparse VCE from shards, rows and tables.

python -m papers.svce.figures measured --shards DIR --seeds 0 1 2 --results DIR --out DIR
python -m papers.svce.figures judged --results DIR --out DIR
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch

from common.batches import Shard, read_shard
from common.errors import one_line_errors
from common.figures import error_bars, save_figures, style
from papers.svce.names import ANCHORS, NAMES, OPTIMISERS, PATHS, THRESHOLDED


def realism(table: pd.DataFrame) -> plt.Figure:
    """KID of every set of counterfactuals with its interval, from real and from empty start images; the dashed line is
    the floor, real images against real images, the dotted one doing nothing. The share that the panel reads as the
    target stands beside each (claims C5, C7, C8)."""
    shown = table[table["starts"].isin(["ID", "OD"])]
    worlds = sorted(shown["world"].unique(), reverse=True)
    sets = [shown[(shown["world"] == world) & (shown["classifier"] != "none")] for world in worlds]
    heights = [part.groupby(["classifier", "method"]).ngroups for part in sets]
    figure, axes = plt.subplots(
        len(worlds), 2, figsize=(12, 0.34 * sum(heights) + 1.4), sharey="row", squeeze=False, height_ratios=heights
    )
    for line, world, part in zip(axes, worlds, sets, strict=True):
        keys = sorted(part.groupby(["classifier", "method"]).groups)
        for axis, starts in zip(line, ("ID", "OD"), strict=True):
            cell = part[part["starts"] == starts].set_index(["classifier", "method"]).reindex(keys)
            error = np.stack([cell["kid"] - cell["low"], cell["high"] - cell["kid"]]).clip(0)
            axis.errorbar(cell["kid"], range(len(keys)), xerr=error, fmt="o", ms=4, capsize=2)
            for y, (right, valid) in enumerate(zip(cell["high"], cell["oracle_valid"], strict=True)):
                axis.annotate(f"  {valid:.0%}", (right, y), va="center", fontsize=7)
            for method, style_ in (("real", "--"), ("identity", ":")):
                control = shown[(shown["world"] == world) & (shown["starts"] == starts) & (shown["method"] == method)]
                axis.axvline(control["kid"].mean(), color="0.3", lw=1, ls=style_)
            empty = "scrambled digits" if world == "mnist" else "images without object"
            axis.set(title=f"{world}, from {'real images' if starts == 'ID' else empty} ({starts})")
            axis.set(ylim=(len(keys) - 0.5, -0.5))
            axis.margins(x=0.12)
        line[0].set(yticks=range(len(keys)), yticklabels=[f"{kind}: {NAMES.get(m, m)}" for kind, m in keys])
    for axis in axes[-1]:
        axis.set_xlabel("KID (dashed: real images, dotted: doing nothing); %: read as the target by the panel")
    figure.tight_layout()
    return figure


def discovery(nets: pd.DataFrame) -> plt.Figure:
    """Every net: what pasting the cue does to it against how much its counterfactuals look like the cue (claim C10)."""
    nets = nets[~nets["method"].str.endswith("/thresholded")]
    nets = nets.assign(net=np.where(nets["planted"], "cue planted", "clean"), norm=nets["method"].str.split("/").str[1])
    plot = sns.relplot(
        nets, x="overlay_gain", y="alignment_gain", hue="norm", style="net", style_order=["cue planted", "clean"],
        col="cue", s=70, alpha=0.6, height=3.2, aspect=1.15,
    )  # fmt: skip
    for axis in plot.axes.flat:
        axis.axvline(0, color="0.3", lw=0.8)
        axis.axhline(0, color="0.3", lw=0.8)
    plot.set_titles("{col_name} cue")
    plot.set_axis_labels("effect of pasting the cue, above its control", "alignment with the cue, above its control")
    return plot.figure


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
    plot.set(yscale="log", ylim=(1e-4, None), ylabel="mean gap of log p to the best of these")
    plot.set_titles("scenes, l2at; {col_name}; band: training seeds")
    return plot.figure


def sparsity(methods: pd.DataFrame) -> plt.Figure:
    """Sparsity, visibly changed pixels, place and honesty at matched confidence, with 95 % intervals."""
    shown = PATHS | THRESHOLDED | ANCHORS
    cells = [("scenes", "l2at"), ("scenes", "standard"), ("scenes-tied", "l2at"), ("mnist", "l2at")]
    metrics = {"hoyer": "Hoyer sparsity", "pixel_share": "pixels with Σ|δ| > 0.1", "on_mask": "change on the object",
               "honest": "first success is oracle-valid"}  # fmt: skip
    figure, axes = plt.subplots(1, len(metrics), figsize=(13, 3.6), sharey=True)
    for axis, (metric, title) in zip(axes, metrics.items(), strict=True):
        for k, (world, classifier) in enumerate(cells):
            cell = methods[(methods["world"] == world) & (methods["classifier"] == classifier)].set_index("method")
            label = f"{world}, {classifier}" + (" (left out: reliance on the class factor < .8)" if cell.empty else "")
            cell = cell.reindex(list(shown))
            y = np.arange(len(shown)) + 0.18 * (k - 1.5)
            axis.errorbar(cell[metric], y, xerr=error_bars(cell, metric), fmt="o", ms=4, capsize=2, label=label)
        axis.set(title=title, xlim=(-0.03, 1.03))
    axes[0].set(yticks=range(len(shown)), yticklabels=shown.values())
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=3, bbox_to_anchor=(0.5, -0.16))
    return figure


def radius(rows: pd.DataFrame) -> plt.Figure:
    """Confidence and oracle validity against the distance of the path, per method and classifier."""
    searched = set(rows.loc[rows["method"].isin(PATHS), ["world", "classifier"]].itertuples(index=False, name=None))
    here = [cell in searched for cell in zip(rows["world"], rows["classifier"], strict=True)]
    chosen = rows[rows["method"].isin([*PATHS, "random", "twin"]) & here]
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
        estimator=None,
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
        long, x="confidence", y="value", hue="method", col="cell", row="metric", kind="line", estimator=None,
        marker="o", height=2.6, aspect=1.35, facet_kws={"sharey": "row"},
    )  # fmt: skip
    plot.set(xlim=(-0.02, 1.02), ylim=(0, 1))
    plot.set_titles("{col_name}: {row_name}")
    plot.set_axis_labels("own confidence in the target, mean", "mean over pairs and seeds")
    for axis in plot.axes.flat:
        axis.set_visible(any(line.get_xdata().size for line in axis.lines))  # digits have no mask
    return plot.figure


def measured(shards: Path, seeds: list[str], results: Path) -> dict[str, tuple[plt.Figure, list[Path]]]:
    """The figures that need no verdict, each with the files it is made from."""
    robust = [shards / f"pairs/scenes/l2at-{seed}.safetensors" for seed in seeds]
    rows, tables = results / "rows.parquet", results / "tables"
    realistic, discovered = tables / "realism.csv", tables / "discovery.csv"
    long = pd.read_parquet(rows)
    return {
        "optimisers": (optimisers([read_shard(path) for path in robust]), robust),
        "sparsity-confidence": (sparsity_confidence(long), [rows]),
        "radius": (radius(long), [rows]),
        "realism": (realism(pd.read_csv(realistic)), [realistic]),
        "discovery": (discovery(pd.read_csv(discovered)), [discovered]),
    }


def judged(results: Path) -> dict[str, tuple[plt.Figure, list[Path]]]:
    """The figure of the table at matched confidence, which the verdicts come with."""
    methods = results / "tables/methods.csv"
    return {"sparsity": (sparsity(pd.read_csv(methods)), [methods])}


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measured", "judged"], help="which figures: without or with verdicts")
    parser.add_argument("--shards", type=Path, help="for `measured`: folder of shards, STARTS/WORLD/KIND-SEED")
    parser.add_argument("--seeds", nargs="+", help="for `measured`: training seeds")
    parser.add_argument("--results", type=Path, required=True, help="folder of rows.parquet and tables/")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.png and NAME.svg")
    args = parser.parse_args()
    style()
    drawn = measured(args.shards, args.seeds, args.results) if args.what == "measured" else judged(args.results)
    rule = {"measured": "svce_figures", "judged": "svce_judged_figures"}[args.what]
    save_figures(drawn, args.out, rule, lambda path: f"{path.parent.name}/{path.name}")


if __name__ == "__main__":
    main()

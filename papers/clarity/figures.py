"""Job: the figures of Clarity (spec §4).

python -m papers.clarity.figures --results DIR --batches DIR --systems DIR --splits DIR --seed 0 --out DIR
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from torch import Tensor

from common.batches import Shard, read_shards
from common.data import datasets
from common.errors import one_line_errors
from common.explain import log_confidence
from common.figures import difference_map, image_grid, picture, save_figure, style, verdict_figure, with_maximum
from common.files import sha256
from common.matching import At, read
from common.statistics import paired_bootstrap
from papers.clarity.names import SPACES
from papers.clarity.systems import Systems, load_systems

CONTROLS = {"class-mean-shift": "class-mean shift", "random-latent": "random", "twin-latent": "towards the twin"}
SHOWN_SPACES = ("p", "pr", "l-mean", "l-sample")
COLOURS = dict(zip(SHOWN_SPACES, sns.color_palette("colorblind", 4), strict=True))
SCORES = {
    "oracle_share": "share of judges that see the target",
    "oracle_svm": "the judge that is no network",
    "im1": "IM1 (lower: more like the target)",
    "knn": "distance to real images of the target",
}
RANDOM_PAIRS = 8


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
                        label = f"{SPACES[space]}, M = {m}"
                        axis.plot(found["strength"], found["mean"], color=COLOURS[space], lw=width, label=label)
                        axis.fill_between(
                            found["strength"], found["low"], found["high"], color=COLOURS[space], alpha=0.1
                        )
            for (method, name), dash in zip(CONTROLS.items(), ("--", ":", "-."), strict=True):
                cell = here[here["method"] == method]
                if cell[metric].notna().any():
                    found = curve(cell, metric)
                    axis.plot(found["strength"], found["mean"], color="0.25", ls=dash, lw=1.4, label=name)
            axis.set(title=f"{world}: {SCORES[metric]}", xlabel="‖z − z₀‖")
            axis.set_visible(bool(axis.lines))
    handles = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    handles |= dict(zip(*reversed(axes[-1, 0].get_legend_handles_labels()), strict=True))
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
                if not cell.empty:
                    found = curve(cell, metric)
                    axis.errorbar(
                        found["strength"], found["mean"], np.stack([found["mean"] - found["low"],
                        found["high"] - found["mean"]]).clip(0), color=COLOURS[space], lw=width, capsize=2, marker="o",
                        ms=3, label=f"{SPACES[space]}, M = {m}",
                    )  # fmt: skip
        axis.set(title=SCORES[metric], xlabel="own threshold τ", xticks=sorted(here["strength"].unique()))
    figure.tight_layout()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
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
    plot.axes[0, 0].axvline(-4, color="C3", lw=1)
    every = auc[(auc["half"] == 0) & (auc["quantity"] != "chance")].groupby("quantity")["auc"].mean()
    text = "; ".join(f"{quantity}: {value:.2f}" for quantity, value in every.items())
    caption = f"AUC for failure of a short ∇p, or of a small p alone (chance .5): {text}"
    plot.figure.text(0.5, -0.03, caption, ha="center", fontsize=8)
    return plot.figure


def random_pairs(n: int, seed: int) -> list[int]:
    """Positions of 8 pairs, drawn and not chosen."""
    return sorted(np.random.Generator(np.random.Philox(key=seed)).permutation(n)[:RANDOM_PAIRS].tolist())


def grid(
    shards: dict[str, Shard], systems: Systems, columns: list[str], method: str, place: int, data: Path, seed: int
):
    """R-F3: randomly drawn pairs: x, its reconstruction, and the counterfactual of every system with its change of the
    reconstruction."""
    first = shards[columns[0]]
    originals = datasets.load_ids(first.world, first.ids, data).images
    reconstructed = systems.vae.reconstruct(originals)
    names = datasets.world(first.world).class_names
    rows, labels = [], []
    for i in random_pairs(len(first.ids), seed):
        line = [(picture(originals[i]), f"a {names[int(first.source[i])]}"), (picture(reconstructed[i]), "its g(μ(x))")]
        for column in columns:
            batch = shards[column].batches[method]
            image, p = batch.images[i, place], batch.confidence[i, place].item()
            line.append((picture(image), f"{column}: p = {p:.2f}"))
            line.append(with_maximum(difference_map(image, reconstructed[i])))
        rows.append(line)
        labels.append(f"→ {names[int(first.target[i])]}")
    figure = image_grid(rows, labels, cell=1.25)
    figure.text(0, -0.02, f"pairs drawn at random, seed {seed}; training seed {first.seed}", fontsize=7.5)
    return figure


def latent_map(systems: Systems, images: datasets.Images, target: int, classes: list[int]) -> plt.Figure:
    """R-F4: a latent of two dimensions: log p_t and p_t of one member and of the ensemble, with the gradient of each.
    Where the arrows of p_t vanish lies the plateau; those of log p_t stay."""
    mean = systems.vae.latents(images.images)[0]
    reach = float(mean.abs().max()) * 1.05
    side = torch.linspace(-reach, reach, 81)
    z = torch.cartesian_prod(side, side)
    coarse = torch.cartesian_prod(side[4::8], side[4::8])
    figure, axes = plt.subplots(2, 2, figsize=(9, 8.4), sharex=True, sharey=True)
    for line, name in zip(axes, ("l-sample.0", "l-sample-m10"), strict=True):
        system = systems.system(name)
        with torch.no_grad():
            log_p = system.log_probabilities(z)[:, target]
        value, g = log_confidence(system.log_probabilities, torch.full((len(coarse),), target))(
            coarse, torch.arange(len(coarse))
        )
        shown = (("log p", log_p, g), ("p", log_p.exp(), g * value.exp()[:, None]))
        for axis, (quantity, field, arrows) in zip(line, shown, strict=True):
            drawn = axis.imshow(
                field.view(81, 81).T, origin="lower", extent=(-reach, reach) * 2, cmap="viridis", aspect="auto",
            )  # fmt: skip
            axis.quiver(*coarse.T.numpy(), *_visible(arrows).T.numpy(), color="0.75", width=0.003)
            for label in classes:
                mine = mean[images.labels == label]
                axis.scatter(*mine.T.numpy(), s=28, marker=f"${label}$", color="w" if label == target else "C1", lw=0)
            figure.colorbar(drawn, ax=axis)
            what = "one member" if "." in name else "ensemble of 10"
            axis.set(title=f"{what}: {quantity}(class {target}) and its gradient", xlabel="z₁", ylabel="z₂")
            axis.grid(visible=False)
    figure.tight_layout()
    return figure


def _visible(arrows: Tensor) -> Tensor:
    """Arrows of equal length, and none where the gradient is shorter than that of a plateau."""
    norm = arrows.norm(dim=1, keepdim=True)
    return torch.where(norm < 1e-4, 0.0, arrows / norm.clamp_min(1e-30))


def reconstructions(all_systems: list[Systems], splits: Path, data: Path, count: int = 12) -> plt.Figure:
    """Images of the pairs split above their reconstructions, for the VAE of every world."""
    rows, labels = [], []
    for systems in all_systems:
        images = datasets.load(
            systems.world, pd.read_parquet(splits / f"{systems.world}.parquet"), "pairs", data, count
        )
        for name, shown in (("x", images.images), ("g(μ(x))", systems.vae.reconstruct(images.images))):
            rows.append([(picture(image), "") for image in shown])
            labels.append(f"{systems.world}\n{name}")
    return image_grid(rows, labels, cell=0.9)


def samples(all_systems: list[Systems], count: int = 12) -> plt.Figure:
    """Images decoded from draws of the prior."""
    rows, labels = [], []
    for systems in all_systems:
        d = int(np.prod(systems.vae.latent_shape))
        z = torch.randn(2 * count, d, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            drawn = systems.vae.decode(z)
        for k in range(2):
            rows.append([(picture(image), "") for image in drawn[k * count : (k + 1) * count]])
            labels.append(systems.world)
    return image_grid(rows, labels, cell=0.9)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of the measured tables")
    parser.add_argument("--batches", type=Path, nargs="+", required=True, help="files of shards")
    parser.add_argument("--systems", type=Path, required=True, help="folder of NAME-SEED.safetensors")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--seed", type=int, required=True, help="the training seed that is shown in pictures")
    parser.add_argument("--digits", type=int, nargs="+", required=True, help="classes of the latent that is drawn")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.png and NAME.svg")
    args = parser.parse_args()
    style()
    cells, gradients, curve_table, auc, tests = (
        args.results / name
        for name in (
            "cells.parquet",
            "diagnostics/gradients.parquet",
            "diagnostics/convergence.parquet",
            "plateau.parquet",
            "tables/tests.csv",
        )
    )
    table = pd.read_parquet(cells)
    table = table[table["adequate"] == 1]
    shards: dict[str, dict[str, Shard]] = {"mnist": {}, "scenes": {}}
    for path in args.batches:
        for shard in read_shards(path):
            if shard.starts in ("pairs", "scenes") and "search" in shard.batches:
                shards[shard.world][shard.classifier] = shard
    mnist, scenes = shards["mnist"], shards["scenes"]
    of = {world: load_systems(args.systems / f"{world}-{args.seed}.safetensors") for world in shards}
    toy = load_systems(args.systems / f"toy-{args.seed}.safetensors")
    table_of_digits = pd.read_parquet(args.splits / "mnist.parquet")
    table_of_digits = table_of_digits[table_of_digits["label"].isin(args.digits)]
    toy_images = datasets.load("mnist", table_of_digits, "pairs", args.data)
    files = {world: args.systems / f"{world}-{args.seed}.safetensors" for world in ("mnist", "scenes", "toy")}
    columns = [name for name in ("p.0", "p-m5", "l-mean.0", "l-sample.0", "l-sample-m5") if name in mnist]
    drawn = {
        "rf1-matched-distance": (matched_distance(table), [cells]),
        "rf2-convergence": (convergence(pd.read_parquet(curve_table)), [curve_table]),
        "rf3-grid": (grid(mnist, of["mnist"], columns, "search", 1, args.data, args.seed), args.batches),
        "rf3-grid-scenes": (
            grid(scenes, of["scenes"], sorted(scenes), "search", 0, args.data, args.seed),
            args.batches,
        ),
        "rf4-latent-map": (latent_map(toy, toy_images, args.digits[-1], args.digits), [files["toy"]]),
        "rf5-confidence-realism": (confidence_realism(table), [cells]),
        "reconstructions": (
            reconstructions(list(of.values()), args.splits, args.data),
            [files["mnist"], files["scenes"]],
        ),
        "samples": (samples(list(of.values())), [files["mnist"], files["scenes"]]),
        "plateau": (plateau(pd.read_parquet(gradients), pd.read_parquet(auc)), [gradients, auc]),
        "verdicts": (verdict_figure(pd.read_csv(tests)), [tests]),
    }
    for name, (figure, inputs) in drawn.items():
        hashes = {path.name: sha256(path) for path in inputs}
        save_figure(figure, args.out / f"{name}.png", {"rule": "clarity_figures", "figure": name, "inputs": hashes})


if __name__ == "__main__":
    main()

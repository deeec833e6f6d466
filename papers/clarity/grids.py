"""Job: the pictures of Clarity (spec §4) from shards and systems: grids of counterfactuals, a latent that can be drawn,
what the generators do.

python -m papers.clarity.grids --batches F... --systems DIR --splits DIR --seed 0 --digits 4 7 9 --out DIR
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.batches import Shard, read_shards
from common.data import datasets
from common.errors import one_line_errors
from common.explain import log_confidence
from common.figures import difference_map, drawn_rows, image_grid, picture, save_figures, style, with_maximum
from papers.clarity.systems import Systems, load_systems

RANDOM_PAIRS = 8
COLUMNS = ("p.0", "p-m5", "l-mean.0", "l-sample.0", "l-sample-m5")


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
    for i in drawn_rows(len(first.ids), seed, RANDOM_PAIRS):
        line = [(picture(originals[i]), f"a {names[int(first.source[i])]}"), (picture(reconstructed[i]), "its g(μ(x))")]
        for column in columns:
            batch = shards[column].batches[method]
            image, p = batch.images[i, place], batch.confidence[i, place].item()
            short = "" if p >= batch.strengths[place] - 5e-3 else f" < {batch.strengths[place]:g}"
            line.append((picture(image), f"{column}: p = {p:.2f}{short}"))
            line.append(with_maximum(difference_map(image, reconstructed[i])))
        rows.append(line)
        labels.append(f"→ {names[int(first.target[i])]}")
    note = f"pairs drawn at random, seed {seed}; training seed {first.seed}"
    return image_grid(rows, labels, cell=1.25, note=note)


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
            axis.quiver(*coarse.T.numpy(), *_visible(arrows).T.numpy(), color="0.45", width=0.003)
            for label in classes:
                mine = mean[images.labels == label]
                axis.scatter(*mine.T.numpy(), s=28, marker=f"${label}$", color="w" if label == target else "C3", lw=0)
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
    parser.add_argument("--batches", type=Path, nargs="+", required=True, help="files of shards")
    parser.add_argument("--systems", type=Path, required=True, help="folder of NAME-SEED.safetensors")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--seed", type=int, required=True, help="the training seed that is shown")
    parser.add_argument("--digits", type=int, nargs="+", required=True, help="classes of the latent that is drawn")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.png and NAME.svg")
    args = parser.parse_args()
    style()
    shards: dict[str, dict[str, Shard]] = {"mnist": {}, "scenes": {}}
    for path in args.batches:
        for shard in read_shards(path):
            if shard.starts in ("pairs", "scenes") and "search" in shard.batches:
                shards[shard.world][shard.classifier] = shard
    mnist, scenes = shards["mnist"], shards["scenes"]
    files = {world: args.systems / f"{world}-{args.seed}.safetensors" for world in (*shards, "toy")}
    systems = {world: load_systems(path) for world, path in files.items()}
    toy = systems.pop("toy")
    table = pd.read_parquet(args.splits / "mnist.parquet")
    toy_images = datasets.load("mnist", table[table["label"].isin(args.digits)], "pairs", args.data)
    columns = [name for name in COLUMNS if name in mnist]
    both, generators = list(systems.values()), [files["mnist"], files["scenes"]]
    drawn = {
        "rf3-grid": (grid(mnist, systems["mnist"], columns, "search", 1, args.data, args.seed), args.batches),
        "rf3-grid-scenes": (
            grid(scenes, systems["scenes"], sorted(scenes), "search", 0, args.data, args.seed), args.batches,
        ),
        "rf4-latent-map": (latent_map(toy, toy_images, args.digits[-1], args.digits), [files["toy"]]),
        "reconstructions": (reconstructions(both, args.splits, args.data), generators),
        "samples": (samples(both), generators),
    }  # fmt: skip
    save_figures(drawn, args.out, "clarity_grids")


if __name__ == "__main__":
    main()

"""Job: what generative methods need for one training seed: of every world the VAE that they share, then what each of
them trains for every classifier.

python -m comparison.train --worlds '{"faces-smile": {"classifiers": ["l2at"], "vae": {...}}}' --methods '{...}'
    --checkpoints WORLD=DIR... --splits DIR --seed 0 --out DIR

`vae` is a recipe, with the number of rendered `images` that it learns from, the file of a trained one, or null: no
method of this world needs one. Parts lie in OUT/WORLD-SEED/; what each took stands in seconds.json beside them.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from common.data import datasets, faces
from common.errors import one_line_errors
from common.files import write_atomic
from common.generators.vae import VAE, Recipe, load_vae, save_vae, train_vae
from common.progress import Progress
from common.scales import parse_recipe
from comparison.bench import Bench, load_benches, paths_by_world
from comparison.entries import Entry, parse_entries


def generator(world: str, recipe: dict | str, seed: int, data: Path, progress: Callable[[], None]) -> VAE:
    """The VAE in a file, or one that learns from rendered images of its own, which nobody else sees."""
    if isinstance(recipe, str):
        return load_vae(recipe, datasets.world(world).image_shape)
    fields = {name: value for name, value in recipe.items() if name != "images"}
    ids = tuple(f"generator-{seed}-{k}" for k in range(recipe["images"]))
    if datasets.world(world).attribute:
        images = faces.render(datasets.face_factors(ids))  # without masks, which cost as much again
    else:
        images = datasets.load_ids(world, ids, data).images
    return train_vae(images, parse_recipe(Recipe, fields), seed, lambda epoch: progress())


def prepare_world(
    world: str,
    benches: list[Bench],
    vae: dict | str | None,
    entries: list[Entry],
    data: Path,
    progress: Callable[[], None],
) -> dict[str, float]:
    """Train and write all parts of one world; the seconds that each took."""
    seed, seconds, start = benches[0].seed, {}, time.perf_counter()
    if vae:
        save_vae(generator(world, vae, seed, data, progress), benches[0].file("vae"), {"recipe": vae, "seed": seed})
        seconds["vae"] = time.perf_counter() - start
    for entry in entries:
        start = time.perf_counter()
        entry.prepare_all(benches, progress)
        seconds[entry.name] = time.perf_counter() - start
    return seconds


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=json.loads, required=True, help="JSON: explained classifiers and vae by world")
    parser.add_argument("--methods", type=json.loads, required=True, help="JSON: the methods of the comparison")
    parser.add_argument("--checkpoints", nargs="+", required=True, help="WORLD=DIR of KIND-SEED.safetensors")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of WORLD-SEED/")
    args = parser.parse_args()
    folders, entries = paths_by_world(args.checkpoints), parse_entries(args.methods)
    mine = {world: [entry for entry in entries if world in entry.prepare] for world in args.worlds}
    parts = sum(
        (settings["vae"]["epochs"] if isinstance(settings["vae"], dict) else 0)
        + len(mine[world]) * (1 + len(settings["classifiers"]))
        for world, settings in args.worlds.items()
    )
    with Progress("prepare generators", parts, "parts") as progress:
        for world, settings in args.worlds.items():
            table, folder = pd.read_parquet(args.splits / f"{world}.parquet"), args.out / f"{world}-{args.seed}"
            benches = load_benches(world, settings["classifiers"], args.seed, folders[world], table, args.data, folder)
            seconds = prepare_world(world, benches, settings["vae"], mine[world], args.data, progress.advance)
            write_atomic(folder / "seconds.json", json.dumps(seconds, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()

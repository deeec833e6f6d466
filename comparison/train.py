"""Job: what generative methods need for one world and training seed: the VAE that they share, then what each of them
trains for every classifier.

python -m comparison.train --world faces-smile --kinds standard l2at --vae '{...}' --methods '{...}' --checkpoints DIR
    --splits DIR --seed 0 --out DIR

`--vae` is a recipe, with the number of rendered `images` that it learns from, the file of a trained one, or null: no
method of this world needs one. What every part took stands in OUT/seconds.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from common.data import datasets
from common.errors import one_line_errors
from common.files import write_atomic
from common.generators.vae import VAE, Recipe, load_vae, save_vae, train_vae
from common.progress import Progress
from common.scales import parse_recipe
from comparison.bench import load_benches
from comparison.entries import parse_entries


def generator(world: str, recipe: dict | str, seed: int, data: Path, progress: Callable[[], None]) -> VAE:
    """The VAE in a file, or one that learns from rendered images of its own, which nobody else sees."""
    if isinstance(recipe, str):
        return load_vae(recipe, datasets.world(world).image_shape)
    fields = {name: value for name, value in recipe.items() if name != "images"}
    ids = tuple(f"generator-{seed}-{k}" for k in range(recipe["images"]))
    images = datasets.load_ids(world, ids, data).images
    return train_vae(images, parse_recipe(Recipe, fields), seed, lambda epoch: progress())


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", required=True)
    parser.add_argument("--kinds", nargs="+", required=True, help="the explained classifiers")
    parser.add_argument("--vae", type=json.loads, required=True, help="JSON: fields of Recipe and `images`, or a file")
    parser.add_argument("--methods", type=json.loads, required=True, help="JSON: the methods of the comparison")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder of KIND-SEED.safetensors")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of this world and seed")
    args = parser.parse_args()
    table = pd.read_parquet(args.splits / f"{args.world}.parquet")
    benches = load_benches(args.world, args.kinds, args.seed, args.checkpoints, table, args.data, args.out)
    entries = [entry for entry in parse_entries(args.methods) if args.world in entry.prepare]
    epochs = args.vae["epochs"] if isinstance(args.vae, dict) else 0
    seconds, start = {}, time.perf_counter()
    with Progress(f"prepare {args.world}", epochs + len(entries) * (1 + len(benches)), "parts") as progress:
        if args.vae:
            vae = generator(args.world, args.vae, args.seed, args.data, progress.advance)
            save_vae(vae, benches[0].file("vae"), {"recipe": args.vae, "seed": args.seed})
            seconds["vae"] = time.perf_counter() - start
        for entry in entries:
            start = time.perf_counter()
            entry.prepare_all(benches, progress.advance)
            seconds[entry.name] = time.perf_counter() - start
    write_atomic(args.out / "seconds.json", json.dumps(seconds, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()

"""Job: train one generator of a world.

python -m common.generators.train diffusion --world scenes --splits S.parquet --recipe '{...}' --seed 0 --out F
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from common.data import datasets
from common.errors import VceError, one_line_errors
from common.generators.diffusion import Recipe, denoising_errors, save_diffusion, train_diffusion
from common.progress import Progress


def train_score_model(world: str, table: pd.DataFrame, data: Path, recipe: Recipe, seed: int, out: Path) -> None:
    """Train on the images of the explained systems, write a checkpoint with its errors on the calibration images."""
    fit, held_out = datasets.load(world, table, "systems", data), datasets.load(world, table, "calibration", data)
    with Progress(f"train {out.stem}", total=recipe.epochs, unit="epochs") as progress:
        model = train_diffusion(fit.images, recipe, seed, lambda epoch: progress.advance())
    facts = {
        "recipe": vars(recipe),
        "seed": seed,
        "denoising_errors": denoising_errors(model, held_out.images, fit.images.mean(0)),
    }
    save_diffusion(model, out, facts)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["diffusion"])
    parser.add_argument("--world", required=True)
    parser.add_argument("--splits", type=Path, required=True, help="the split table of the world")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--recipe", type=json.loads, required=True, help="JSON fields of Recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint to write")
    args = parser.parse_args()
    recipe = parse_recipe(args.recipe)
    train_score_model(args.world, pd.read_parquet(args.splits), args.data, recipe, args.seed, args.out)


def parse_recipe(fields: dict) -> Recipe:
    """A `Recipe` from a config file's fields. Raises VceError naming the field that is wrong."""
    try:
        return Recipe(**fields)
    except TypeError as error:
        raise VceError(f"diffusion recipe {fields}: {error}; fix it in config/") from error


if __name__ == "__main__":
    main()

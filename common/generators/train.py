"""Job: train generators.

python -m common.generators.train diffusion --splits DIR --recipes '{"scenes": {...}}' --out DIR
python -m common.generators.train vae --splits DIR --recipes '{"mnist": {"world": "mnist", "seeds": [0]}}' --out DIR

Files are WORLD-diffusion.safetensors, and NAME-SEED.safetensors of a VAE.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch

from common.data import datasets
from common.errors import one_line_errors
from common.generators import diffusion, vae
from common.progress import Progress
from common.scales import parse_recipe


def train_score_model(
    world: str, table: pd.DataFrame, data: Path, recipe: diffusion.Recipe, seed: int, out: Path
) -> None:
    """Train on the images of the explained systems, write a checkpoint with its errors on the calibration images."""
    fit, held_out = datasets.load(world, table, "systems", data), datasets.load(world, table, "calibration", data)
    with Progress(f"train {out.stem}", total=recipe.epochs, unit="epochs") as progress:
        model = diffusion.train_diffusion(fit.images, recipe, seed, lambda epoch: progress.advance())
    facts = {
        "recipe": vars(recipe),
        "seed": seed,
        "denoising_errors": diffusion.denoising_errors(model, held_out.images, fit.images.mean(0)),
    }
    diffusion.save_diffusion(model, out, facts)


def train_autoencoder(world: str, table: pd.DataFrame, data: Path, recipe: vae.Recipe, seed: int, out: Path) -> None:
    """Train on the images of the explained systems, write a checkpoint with its held-out terms of the ELBO."""
    fit, held_out = datasets.load(world, table, "systems", data), datasets.load(world, table, "calibration", data)
    with Progress(f"train {out.stem}", total=recipe.epochs, unit="epochs") as progress:
        model = vae.train_vae(fit.images, recipe, seed, lambda epoch: progress.advance())
    with torch.no_grad():
        mean, std = model.latents(held_out.images)
        z = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
        loss = vae.negative_log_likelihood(model, held_out.images, z, recipe.likelihood, recipe.sigma)
        error = (model.reconstruct(held_out.images) - held_out.images).square()
    held = {"nll": loss.mean(), "kl": vae.kl_to_prior(mean, std).mean(), "mse": error.mean()}
    facts = {"recipe": vars(recipe), "seed": seed, "held_out": {name: value.item() for name, value in held.items()}}
    vae.save_vae(model, out, facts)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["diffusion", "vae"])
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument(
        "--recipes", type=json.loads, required=True, help="JSON: fields of Recipe by world, or VAE name"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    args = parser.parse_args()
    for name, fields in args.recipes.items():
        if args.what == "diffusion":
            table = pd.read_parquet(args.splits / f"{name}.parquet")
            recipe = parse_recipe(diffusion.Recipe, fields)
            train_score_model(name, table, args.data, recipe, 0, args.out / f"{name}-diffusion.safetensors")
            continue
        world, seeds, classes = fields.pop("world"), fields.pop("seeds"), fields.pop("classes", None)
        table, recipe = pd.read_parquet(args.splits / f"{world}.parquet"), parse_recipe(vae.Recipe, fields)
        if classes:
            table = table[table["label"].isin(classes)]
        for seed in seeds:
            train_autoencoder(world, table, args.data, recipe, seed, args.out / f"{name}-{seed}.safetensors")


if __name__ == "__main__":
    main()

"""Job: what DISC explains, for one training seed: classifiers with their companions, and a regressor of age.

python -m papers.disc.train --recipes '{"companions": {...}, "regressors": {...}}' --splits DIR --seed 0 --out DIR

Writes WORLD-SEED.safetensors per world of `companions`, and NAME-SEED.safetensors per name of `regressors`.
"""

import argparse
import json
import math
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from common.classifiers.base import Classifier
from common.classifiers.checkpoints import build, save_checkpoint
from common.classifiers.companion import Recipe, save_companion, train_companion
from common.classifiers.training import accuracy
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.progress import Progress
from common.scales import parse_recipe

FACES = "faces-old"  # the world whose age, the depth of the wrinkles, is regressed


def train_regressor(
    images: Tensor, values: Tensor, architecture: str, epochs: int, seed: int, batch_size: int = 64, rate: float = 3e-3
) -> Classifier:
    """A classifier with one output, fitted by least squares to N images and N values: AdamW with a one-cycle rate; same
    seed, same bits. Raises VceError for an unknown architecture or a loss that is not finite."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        regressor = build(architecture, name="regressor", image_shape=tuple(images.shape[1:]), class_names=("value",))
    for buffer in (regressor.mean, regressor.std):
        buffer.fill_(0.5)
    generator, steps = torch.Generator().manual_seed(seed), epochs * -(-len(images) // batch_size)
    optimiser = torch.optim.AdamW(regressor.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(batch_size):
            optimiser.zero_grad()
            loss = F.mse_loss(regressor(images[rows])[:, 0], values[rows])
            loss.backward()
            optimiser.step()
            schedule.step()
    if not loss.isfinite():
        raise VceError(f"regressor {architecture}: the loss is not finite; train it shorter in config/")
    return regressor.eval().requires_grad_(False)


def fit_temperature(logits: Tensor, labels: Tensor, rounds: int = 60) -> float:
    """The T whose mean confidence is the accuracy (c + 1)/(n + 2), by bisection of log T in [−3, 3].

    Laplace's rule, since a classifier without an error on held-out images would be sharpened without end, and every
    probability of it rounded to 0 or 1.
    """
    wanted = ((logits.argmax(1) == labels).sum().item() + 1) / (len(labels) + 2)
    low, high = -3.0, 3.0
    for _ in range(rounds):
        middle = (low + high) / 2
        confidence = (logits.double() / math.exp(middle)).softmax(1).amax(1).mean().item()
        low, high = (middle, high) if confidence > wanted else (low, middle)
    return math.exp((low + high) / 2)


def companion_job(world: str, recipe: Recipe, table: pd.DataFrame, seed: int, data: Path, out: Path) -> None:
    """Train on the systems split, calibrate on the held-out one, keep the accuracies of the three heads."""
    systems, held = (datasets.load(world, table, split, data) for split in ("systems", "calibration"))
    names = datasets.world(world).class_names
    with Progress(f"train {world}", total=recipe.epochs, unit="epochs") as progress:
        try:
            companion = train_companion(
                systems.images, systems.labels, names, recipe, seed, lambda epoch: progress.advance()
            )
        except VceError as error:
            raise VceError(f"{world}: {error} in config/") from error
    with torch.no_grad():
        logits, z, means = companion.read(held.images)
        own = F.cross_entropy(logits, held.labels, reduction="none")
        companion.temperature.fill_(fit_temperature(logits, held.labels))
        predicted = companion.predicted_error(means)
    facts = {
        "recipe": vars(recipe),
        "seed": seed,
        "accuracy": accuracy(companion, held.images, held.labels),
        "centroid_accuracy": (companion.distances(z).argmin(1) == held.labels).float().mean().item(),
        "error_correlation": torch.corrcoef(torch.stack([predicted, own]))[0, 1].item(),
        "temperature": companion.temperature.item(),
    }
    save_companion(companion, out, facts)


def regressor_job(recipe: dict, table: pd.DataFrame, seed: int, data: Path, out: Path) -> None:
    """A regressor of the depth of a face's wrinkles, in [0, 1]; `recipe`: architecture, epochs, and the split that it
    is trained on."""
    fit, held = (datasets.load(FACES, table, split, data) for split in (recipe["split"], "calibration"))
    wrinkles = {images.ids: datasets.face_factors(images.ids).wrinkles for images in (fit, held)}
    regressor = train_regressor(fit.images, wrinkles[fit.ids], recipe["architecture"], recipe["epochs"], seed)
    with torch.no_grad():
        error = (regressor(held.images)[:, 0] - wrinkles[held.ids]).abs().mean().item()
    facts = {"recipe": recipe, "seed": seed, "mean_error": error}
    save_checkpoint(regressor, out, architecture=recipe["architecture"], facts=facts)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=json.loads, required=True, help="JSON: companions by world, regressors")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME-SEED.safetensors")
    args = parser.parse_args()
    for world, fields in args.recipes.get("companions", {}).items():
        table, recipe = pd.read_parquet(args.splits / f"{world}.parquet"), parse_recipe(Recipe, fields)
        companion_job(world, recipe, table, args.seed, args.data, args.out / f"{world}-{args.seed}.safetensors")
    for name, recipe in args.recipes.get("regressors", {}).items():
        table = pd.read_parquet(args.splits / f"{FACES}.parquet")
        regressor_job(recipe, table, args.seed, args.data, args.out / f"{name}-{args.seed}.safetensors")


if __name__ == "__main__":
    main()

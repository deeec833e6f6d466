"""Job: train one classifier, or the oracle panel, of a world.

python -m common.classifiers.train classifier --world scenes --splits S.parquet --recipe '{...}' --seed 0 --out F
python -m common.classifiers.train oracles --world scenes --splits S.parquet --recipe '{...}' --out DIR
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch

from common.classifiers.checkpoints import build, save_checkpoint
from common.classifiers.kernel_machine import KernelMachine
from common.classifiers.training import Recipe, accuracy, fit_temperature, robust_accuracy, train
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.progress import Progress

ROBUST_EPSILON = 0.75  # the l2 radius at which every net is measured
ORACLE_SEED = 1000  # no explained system shares it


def train_classifier(
    world: str, table: pd.DataFrame, data: Path, recipe: Recipe, seed: int, split: str, out: Path
) -> None:
    """Train on `split`, calibrate on the held-out split, write a checkpoint with its accuracies."""
    spec = datasets.world(world)
    fit, held_out = datasets.load(world, table, split, data), datasets.load(world, table, "calibration", data)
    torch.manual_seed(seed)
    classifier = build(recipe.architecture, name=out.stem, image_shape=spec.image_shape, class_names=spec.class_names)
    channels = fit.images.transpose(0, 1).flatten(1)
    classifier.mean.data = channels.mean(1).view(1, -1, 1, 1)
    classifier.std.data = channels.std(1).view(1, -1, 1, 1)
    with Progress(f"train {out.stem}", total=recipe.epochs, unit="epochs") as progress:
        train(classifier, fit.images, fit.labels, recipe, seed, lambda epoch: progress.advance())
    facts = {
        "recipe": vars(recipe),
        "seed": seed,
        "accuracy": accuracy(classifier, held_out.images, held_out.labels),
        # before the temperature: sharpened logits would starve the attack of gradient
        "robust_accuracy": robust_accuracy(classifier, held_out.images, held_out.labels, ROBUST_EPSILON),
        "robust_epsilon": ROBUST_EPSILON,
    }
    with torch.no_grad():
        classifier.temperature.fill_(fit_temperature(classifier(held_out.images), held_out.labels))
    save_checkpoint(classifier, out, architecture=recipe.architecture, facts=facts)


def train_oracles(world: str, table: pd.DataFrame, data: Path, recipes: dict[str, Recipe], out: Path) -> None:
    """Train the panel on the oracle split: `<world>-{augmented,svm,l2at}.safetensors` in `out`."""
    for name in ("augmented", "l2at"):
        train_classifier(world, table, data, recipes[name], ORACLE_SEED, "oracles", out / f"{world}-{name}.safetensors")
    spec = datasets.world(world)
    fit, held_out = datasets.load(world, table, "oracles", data), datasets.load(world, table, "calibration", data)
    machine = build("kernel_machine", name=f"{world}-svm", image_shape=spec.image_shape, class_names=spec.class_names)
    machine.network = KernelMachine.fit(fit.images, fit.labels, len(spec.class_names))
    with torch.no_grad():
        machine.temperature.fill_(fit_temperature(machine(held_out.images), held_out.labels))
    facts = {"accuracy": accuracy(machine, held_out.images, held_out.labels)}
    save_checkpoint(machine, out / f"{world}-svm.safetensors", architecture="kernel_machine", facts=facts)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["classifier", "oracles"])
    parser.add_argument("--world", required=True)
    parser.add_argument("--splits", type=Path, required=True, help="the split table of the world")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument(
        "--recipe", type=json.loads, required=True, help="JSON fields of Recipe, per oracle for `oracles`"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, or folder of checkpoints for `oracles`")
    args = parser.parse_args()
    table = pd.read_parquet(args.splits)
    if args.what == "oracles":
        recipes = {name: parse_recipe(fields) for name, fields in args.recipe.items()}
        train_oracles(args.world, table, args.data, recipes, args.out)
    else:
        train_classifier(args.world, table, args.data, parse_recipe(args.recipe), args.seed, "systems", args.out)


def parse_recipe(fields: dict) -> Recipe:
    """A `Recipe` from a config file's fields. Raises VceError naming the field that is wrong."""
    try:
        return Recipe(**fields)
    except TypeError as error:
        raise VceError(f"training recipe {fields}: {error}; fix it in config/") from error


if __name__ == "__main__":
    main()

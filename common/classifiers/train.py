"""Job: the classifiers of some worlds and one seed, or the nets that judge them.

python -m common.classifiers.train classifiers --splits DIR --recipes '{"scenes": {...}}' --seed 0 --out DIR
python -m common.classifiers.train oracles --splits DIR --recipes '{"scenes": {...}}' --out DIR
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch

from common.classifiers.base import Classifier
from common.classifiers.checkpoints import build, load_checkpoint, save_checkpoint
from common.classifiers.kernel_machine import KernelMachine
from common.classifiers.pretrained import load_classifier
from common.classifiers.training import Recipe, accuracy, fit_temperature, train
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.progress import Progress
from common.scales import parse_recipe

# no explained system shares these seeds; the net whose features measure realism is no judge of validity
ORACLE_SEEDS = {"augmented": 1000, "l2at": 1000, "features": 2000}


def train_classifier(
    world: str, table: pd.DataFrame, data: Path, recipe: Recipe, seed: int, split: str, out: Path
) -> None:
    """Train on `split`, calibrate on the held-out split, write a checkpoint with its accuracy.

    A recipe with a `start` fine-tunes the checkpoint of that kind and seed beside `out`.
    """
    spec = datasets.world(world)
    fit = datasets.load(world, table, split, data)
    absent = sorted(set(range(len(spec.class_names))) - set(fit.labels.tolist()))
    if absent:
        missing = ", ".join(spec.class_names[k] for k in absent)
        raise VceError(f"{world}: split {split!r} has no image of {missing}; raise its size in `splits`")
    torch.manual_seed(seed)
    classifier = build(recipe.architecture, name=out.stem, image_shape=spec.image_shape, class_names=spec.class_names)
    channels = fit.images.transpose(0, 1).flatten(1)
    classifier.mean.data = channels.mean(1).view(1, -1, 1, 1)
    classifier.std.data = channels.std(1).clamp_min(1e-3).view(1, -1, 1, 1)
    if recipe.start:
        start = load_checkpoint(out.with_name(f"{recipe.start}-{seed}.safetensors"))
        classifier.network.load_state_dict(start.network.state_dict(), strict=True)
    with Progress(f"train {world} {out.stem}", total=recipe.epochs, unit="epochs") as progress:
        try:
            train(classifier, fit.images, fit.labels, recipe, seed, lambda epoch: progress.advance())
        except VceError as error:
            raise VceError(f"{world} {out.stem}: {error} in config/") from error
    facts = {"recipe": vars(recipe), "seed": seed}
    _calibrate_and_save(classifier, world, table, data, out, recipe.architecture, facts)


def adopt_packaged(world: str, table: pd.DataFrame, data: Path, recipe: dict, seed: int, out: Path) -> None:
    """A packaged classifier as a checkpoint of this world, calibrated like a trained one.

    `recipe` has `packaged`, its name in `common.classifiers.pretrained`, and its `architecture`.
    """
    classifier = load_classifier(recipe["packaged"])
    facts = {"recipe": recipe, "seed": seed}
    _calibrate_and_save(classifier, world, table, data, out, recipe["architecture"], facts)


def _calibrate_and_save(
    classifier: Classifier, world: str, table: pd.DataFrame, data: Path, out: Path, architecture: str, facts: dict
) -> None:
    held_out = datasets.load(world, table, "calibration", data)
    facts["accuracy"] = accuracy(classifier, held_out.images, held_out.labels)
    with torch.no_grad():
        classifier.temperature.fill_(fit_temperature(classifier(held_out.images), held_out.labels))
    save_checkpoint(classifier, out, architecture=architecture, facts=facts)


def train_classifiers(world: str, table: pd.DataFrame, data: Path, recipes: dict[str, dict], seed: int, out: Path):
    """Every kind of `recipes` in its order, as `<kind>-<seed>.safetensors` in `out`."""
    for kind, fields in recipes.items():
        path = out / f"{kind}-{seed}.safetensors"
        if "packaged" in fields:
            adopt_packaged(world, table, data, fields, seed, path)
        else:
            train_classifier(world, table, data, parse_recipe(Recipe, fields), seed, "systems", path)


def train_oracles(world: str, table: pd.DataFrame, data: Path, recipes: dict[str, Recipe], out: Path) -> None:
    """Train on the oracle split, into `out`: `<world>-{augmented,l2at,svm}`, the judges, and `<world>-features`, in
    whose features realism is measured."""
    for name, seed in ORACLE_SEEDS.items():
        train_classifier(world, table, data, recipes[name], seed, "oracles", out / f"{world}-{name}.safetensors")
    spec = datasets.world(world)
    fit = datasets.load(world, table, "oracles", data)
    machine = build("kernel_machine", name=f"{world}-svm", image_shape=spec.image_shape, class_names=spec.class_names)
    machine.network = KernelMachine.fit(fit.images, fit.labels, len(spec.class_names))
    _calibrate_and_save(machine, world, table, data, out / f"{world}-svm.safetensors", "kernel_machine", {})


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["classifiers", "oracles"])
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--recipes", type=json.loads, required=True, help="JSON: fields of Recipe by world and kind")
    parser.add_argument("--seed", type=int, default=0, help="training seed of the classifiers")
    parser.add_argument("--out", type=Path, required=True, help="folder of WORLD/KIND-SEED, or of WORLD-ORACLE")
    args = parser.parse_args()
    for world, recipes in args.recipes.items():
        table = pd.read_parquet(args.splits / f"{world}.parquet")
        if args.what == "oracles":
            parsed = {name: parse_recipe(Recipe, fields) for name, fields in recipes.items()}
            train_oracles(world, table, args.data, parsed, args.out)
        else:
            train_classifiers(world, table, args.data, recipes, args.seed, args.out / world)


if __name__ == "__main__":
    main()

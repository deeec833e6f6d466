"""Job: what FIDO explains, for one training seed: classifiers that know objects of every size, and their maskers.

python -m papers.fido.train --recipes '{"scenes": {"cnn": {...}}}' --maskers '{"scenes": {...}}' --splits DIR --seed 0
    --out DIR

Writes WORLD-KIND.safetensors per classifier and WORLD-masker.safetensors, a masker for the first kind of its world.

The Saliency Metric crops a box out of an image and stretches it: a classifier that has only seen objects of one size
would be judged off its distribution, and the metric mean nothing. Beside every image it is trained on stretched crops
around the object, from half of it to the whole image (FIDO spec §9.1).
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from common.classifiers.base import Classifier
from common.classifiers.checkpoints import build, save_checkpoint
from common.classifiers.training import Recipe, accuracy, fit_temperature, train
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.progress import Progress
from common.scales import parse_recipe
from papers.fido import masker
from papers.fido.regions import bounding_boxes, crop_and_upscale

ZOOMS = 2  # stretched crops per training image
INWARD = 0.25  # how far an edge of a crop may cut into the object, as a share of its side


def zoom_boxes(objects: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """N×4 boxes, each edge uniform between that of the image and a quarter into the object (N×4), in pixels."""
    height, width = size
    cut = INWARD * (objects[:, 2:] - objects[:, :2])
    inner = torch.cat([objects[:, :2] + cut, objects[:, 2:] - cut], 1)
    outer = torch.tensor([0, 0, height, width])
    return torch.lerp(outer.float(), inner, torch.rand(inner.shape, generator=generator))


def with_zooms(images: datasets.Images, seed: int) -> tuple[Tensor, Tensor]:
    """Images and labels with `ZOOMS` stretched crops of every image."""
    generator = torch.Generator().manual_seed(seed)
    objects = bounding_boxes(images.masks > 0.5)
    boxes = [zoom_boxes(objects, tuple(images.masks.shape[1:]), generator) for _ in range(ZOOMS)]
    crops = [crop_and_upscale(images.images, box) for box in boxes]
    return torch.cat([images.images, *crops]), images.labels.repeat(1 + ZOOMS)


def systems_of(world: str, table: pd.DataFrame, data: Path) -> datasets.Images:
    """The images to train on. Raises VceError when a class has none."""
    labels = set(table["label"][table["split"] == "systems"])
    missing = [name for label, name in enumerate(datasets.world(world).class_names) if label not in labels]
    if missing:
        raise VceError(f"{world}: no image of class {', '.join(missing)} to train on; raise `splits` in config/")
    return datasets.load(world, table, "systems", data)


def train_classifier(world: str, kind: str, recipe: Recipe, table: pd.DataFrame, seed: int, data: Path, out: Path):
    """Train on the systems split and its crops, calibrate on the held-out split; the facts hold the accuracy on it and
    on its crops. Returns the classifier."""
    systems, held = systems_of(world, table, data), datasets.load(world, table, "calibration", data)
    x, y = with_zooms(systems, seed)
    torch.manual_seed(seed)
    spec = datasets.world(world)
    classifier = build(
        recipe.architecture, name=f"{world}-{kind}", image_shape=spec.image_shape, class_names=spec.class_names
    )
    channels = systems.images.transpose(0, 1).flatten(1)
    classifier.mean.data, classifier.std.data = (
        value.view(1, -1, 1, 1) for value in (channels.mean(1), channels.std(1))
    )
    with Progress(f"train {world} {kind}", total=recipe.epochs, unit="epochs") as progress:
        try:
            train(classifier, x, y, recipe, seed, lambda epoch: progress.advance())
        except VceError as error:
            raise VceError(f"{world} {kind}: {error} in config/") from error
    classifier.eval().requires_grad_(False)
    zoomed, labels = with_zooms(held, seed)
    facts = {
        "recipe": vars(recipe),
        "seed": seed,
        "accuracy": accuracy(classifier, held.images, held.labels),
        "zoomed_accuracy": accuracy(classifier, zoomed[len(held.ids) :], labels[len(held.ids) :]),
    }
    classifier.temperature.fill_(fit_temperature(classifier(held.images), held.labels))
    save_checkpoint(classifier, out, architecture=recipe.architecture, facts=facts)
    return classifier


def masker_job(
    world: str, classifier: Classifier, recipe: masker.Recipe, table: pd.DataFrame, seed: int, data: Path, out: Path
) -> None:
    """A masker for one classifier, trained on the images that it was trained on."""
    systems = systems_of(world, table, data)
    with Progress(f"train {out.stem}", total=recipe.epochs, unit="epochs") as progress:
        trained = masker.train_masker(
            classifier, systems.images, systems.labels, recipe, seed, lambda epoch: progress.advance()
        )
    masker.save_masker(trained, out, {"recipe": vars(recipe), "seed": seed})


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=json.loads, required=True, help="JSON: classifiers by world and kind")
    parser.add_argument("--maskers", type=json.loads, default={}, help="JSON: the masker's recipe by world")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    args = parser.parse_args()
    for world, kinds in args.recipes.items():
        table = pd.read_parquet(args.splits / f"{world}.parquet")
        recipes = {kind: parse_recipe(Recipe, fields) for kind, fields in kinds.items()}
        masked = parse_recipe(masker.Recipe, args.maskers[world]) if world in args.maskers else None
        files = {kind: args.out / f"{world}-{kind}.safetensors" for kind in (*kinds, "masker")}
        trained = [
            train_classifier(world, kind, recipe, table, args.seed, args.data, files[kind])
            for kind, recipe in recipes.items()
        ]
        if masked:
            masker_job(world, trained[0], masked, table, args.seed, args.data, files["masker"])


if __name__ == "__main__":
    main()

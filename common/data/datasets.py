"""The worlds by name, and the split table that is drawn before anything is trained (MEASUREMENT: data splits).

A split table has one row per image: `id`, `label`, `split` (systems, calibration, oracles, tuning, pairs), `target`
(a seeded other class) and `rank` (position within its split; every prefix of `pairs` is stratified by class).
"""

import csv
import gzip
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.data import scenes
from common.errors import VceError
from common.explain import Streams

WORLD_SEED = 0
SPLITS = ("systems", "calibration", "oracles", "tuning", "pairs")


@dataclass(frozen=True)
class World:
    """image_shape (C, H, W); class names; whether exact masks and twins exist; the data file, if any."""

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    rendered: bool
    artifact: str | None = None


@dataclass(frozen=True)
class Images:
    """images N×C×H×W in [0, 1], labels N, ids N; masks N×H×W in [0, 1] on rendered worlds."""

    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    masks: Tensor | None = None


WORLDS = {
    world.name: world
    for world in (
        World("scenes", (3, scenes.SIZE, scenes.SIZE), scenes.CLASSES, rendered=True),
        World("scenes-tied", (3, scenes.SIZE, scenes.SIZE), scenes.CLASSES, rendered=True),
        World("mnist", (1, 28, 28), tuple("0123456789"), rendered=False, artifact="mnist_5k.csv.gz"),
    )
}


def world(name: str) -> World:
    """The world called `name`. Raises VceError with the known names."""
    if name not in WORLDS:
        raise VceError(f"world {name!r} is unknown; choose one of {', '.join(WORLDS)}")
    return WORLDS[name]


def draw_splits(name: str, sizes: dict[str, int], seed: int, data: Path) -> pd.DataFrame:
    """The split table of a world: `sizes[split]` images of each split, equally many of every class, none in two splits.

    `data` is the folder of data files. Raises VceError when a class has too few images for the sizes.
    """
    if set(sizes) != set(SPLITS):
        raise VceError(f"splits: needs sizes of {', '.join(SPLITS)}, got {', '.join(sizes)}")
    n_classes = len(world(name).class_names)
    ids, labels = _pool(name, sum(sizes.values()), data)
    rng = np.random.Generator(np.random.Philox(key=seed))
    parts = []
    for label in range(n_classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        start = 0
        for split in SPLITS:
            count = sizes[split] // n_classes
            chosen = members[start : start + count]
            if len(chosen) < count:
                raise VceError(
                    f"{name}: class {label} has {len(members)} images, too few for split {split!r}; lower `splits`"
                )
            parts.append(pd.DataFrame({"id": ids[chosen], "label": label, "split": split, "rank": np.arange(count)}))
            start += count
    table = pd.concat(parts).sort_values(["split", "rank", "label"], ignore_index=True)
    table["rank"] = table.groupby("split").cumcount()
    draw = Streams(seed, tuple(table["id"]), (0,) * len(table)).uniform((), "target").numpy()
    table["target"] = (table["label"] + 1 + (draw * (n_classes - 1)).astype(int)) % n_classes
    return table


def load(name: str, table: pd.DataFrame, split: str, data: Path, n: int | None = None) -> Images:
    """The images of a split in rank order, the first `n` where given."""
    rows = table[table["split"] == split].sort_values("rank").head(n if n is not None else len(table))
    return load_ids(name, tuple(rows["id"]), data)


def load_ids(name: str, ids: tuple[str, ...], data: Path) -> Images:
    """The images with these ids, in this order."""
    if world(name).rendered:
        factors = scene_factors(name, ids)
        images, masks = scenes.render(factors)
        return Images(images, factors.label, ids, masks)
    pixels, labels = _mnist(data / world(name).artifact)
    rows = [int(image_id.split("-")[1]) for image_id in ids]
    return Images(torch.from_numpy(pixels[rows]).float().view(-1, 1, 28, 28) / 255, torch.from_numpy(labels[rows]), ids)


def scene_factors(name: str, ids: tuple[str, ...]) -> scenes.Factors:
    """The factors behind images of a rendered world."""
    return scenes.sample(ids, WORLD_SEED, tied=name == "scenes-tied")


def twins(name: str, ids: tuple[str, ...]) -> Tensor:
    """N×K×C×H×W: each scene rendered with every class in turn, all nuisances fixed (twin error G1)."""
    factors = scene_factors(name, ids)
    n_classes = len(world(name).class_names)
    every = [scenes.render(scenes.twin(factors, torch.full((len(ids),), label)))[0] for label in range(n_classes)]
    return torch.stack(every, 1)


def interventions(name: str, ids: tuple[str, ...], target: Tensor) -> dict[str, Tensor]:
    """The images N×C×H×W under do(factor): the class factor set to `target`, or the background's palette to another."""
    factors = scene_factors(name, ids)
    other = replace(factors, palette=(factors.palette + 1) % len(scenes.PALETTE))
    return {"label": scenes.render(scenes.twin(factors, target))[0], "palette": scenes.render(other)[0]}


def _pool(name: str, needed: int, data: Path) -> tuple[np.ndarray, np.ndarray]:
    if world(name).rendered:
        ids = tuple(f"scene-{i:05d}" for i in range(int(1.2 * needed) + 100))
        return np.array(ids), scene_factors(name, ids).label.numpy()
    _, labels = _mnist(data / world(name).artifact)
    return np.array([f"mnist-{i:04d}" for i in range(len(labels))]), labels


def _mnist(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """5,000 rows of 784 pixel values and a label."""
    try:
        with gzip.open(path, "rt", newline="") as handle:
            table = np.array([[int(float(cell)) for cell in row] for row in csv.reader(handle)], dtype=np.int64)
        if table.shape[1:] != (785,):
            raise ValueError(f"rows of {table.shape[1:]} instead of 785 values")
    except (OSError, EOFError, ValueError, zlib.error, csv.Error) as error:
        raise VceError(f"{path}: not a readable MNIST table ({error}); delete it and run `vce data fetch`") from error
    return table[:, :-1].astype(np.uint8), table[:, -1]

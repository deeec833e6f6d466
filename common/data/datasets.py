"""The worlds by name, and the split table that is drawn before anything is trained (MEASUREMENT: data splits).

A split table has one row per image: `id`, `label`, `split` (systems, calibration, oracles, tuning, pairs), `target`
(a seeded other class) and `rank` (position within its split; every prefix of `pairs` is stratified by class).
"""

import functools
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.data import cues, faces, scenes
from common.errors import VceError
from common.explain import Streams

WORLD_SEED = 0
SPLITS = ("systems", "calibration", "oracles", "tuning", "pairs")


@dataclass(frozen=True)
class World:
    """image_shape (C, H, W); class names; whether exact masks and twins exist; the data file, if any.

    `cue` is planted on part of class 0; `alike` says that classes 0 and 1 are hard to tell apart without one; the class
    of a face is its `attribute`. A world that is neither rendered nor the plain file holds out-of-distribution starts;
    its labels stratify, and mean nothing.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    rendered: bool
    artifact: str | None = None
    alike: bool = False
    cue: str | None = None
    attribute: str | None = None


@dataclass(frozen=True)
class Images:
    """images N×C×H×W in [0, 1], labels N, ids N; masks N×H×W in [0, 1] where the place of the object, or of a
    face's attribute, is known."""

    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    masks: Tensor | None = None


SCENE, FACE, DIGIT = (3, scenes.SIZE, scenes.SIZE), (3, faces.SIZE, faces.SIZE), (1, 28, 28)
DIGITS = tuple("0123456789")
WORLDS = {
    world.name: world
    for world in (
        World("scenes", SCENE, scenes.CLASSES, rendered=True),
        World("scenes-tied", SCENE, scenes.CLASSES, rendered=True),
        World("scenes-uncued", SCENE, scenes.CLASSES, rendered=True, alike=True),
        *(World(f"scenes-{cue}", SCENE, scenes.CLASSES, rendered=True, alike=True, cue=cue) for cue in cues.CUES),
        World("scenes-empty", SCENE, scenes.CLASSES, rendered=False),
        World("faces-smile", FACE, ("no smile", "smile"), rendered=True, attribute="smile"),
        World("faces-bald", FACE, ("hair", "bald"), rendered=True, attribute="bald"),
        World("faces-old", FACE, ("young", "old"), rendered=True, attribute="old"),
        World("mnist", DIGIT, DIGITS, rendered=False, artifact="mnist_5k.csv.gz"),
        World("mnist-scrambled", DIGIT, DIGITS, rendered=False, artifact="mnist_5k.csv.gz"),
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


def targets(table: pd.DataFrame, ids: tuple[str, ...]) -> Tensor:
    """The N target classes that the split table drew for these images."""
    return torch.tensor(table.set_index("id").loc[list(ids), "target"].to_numpy())


@functools.lru_cache(maxsize=16)
def load_ids(name: str, ids: tuple[str, ...], data: Path) -> Images:
    """The images with these ids, in this order; the last sets are kept, since a job asks for them again and again."""
    artifact, attribute = world(name).artifact, world(name).attribute
    if attribute:
        factors = face_factors(ids)
        images = faces.render(factors)
        mask = faces.difference_mask(images, faces.render(faces.twin(factors, attribute)))
        return Images(images, factors.attribute(attribute), ids, mask)
    if artifact is None:
        factors = scene_factors(name, ids)
        images, masks = _render(name, ids, factors)
        return Images(images, factors.label, ids, masks)
    pixels, labels = _mnist(data / artifact)
    rows = [int(image_id.split("-")[1]) for image_id in ids]
    images = torch.from_numpy(pixels[rows]).float().view(-1, *DIGIT) / 255
    if name == "mnist-scrambled":
        images = scrambled(images, ids).clamp(0, 1)
    return Images(images, torch.from_numpy(labels[rows]), ids)


def scene_factors(name: str, ids: tuple[str, ...]) -> scenes.Factors:
    """The factors behind images of a rendered world; in `scenes-empty`, those of a scene without its object."""
    factors = scenes.sample(ids, WORLD_SEED, tied=name == "scenes-tied")
    return scenes.emptied(factors) if name == "scenes-empty" else factors


def face_factors(ids: tuple[str, ...]) -> faces.Factors:
    """The factors behind faces, the same in every world of faces."""
    return faces.sample(ids, WORLD_SEED)


def twins(name: str, ids: tuple[str, ...]) -> Tensor:
    """N×K×C×H×W: each image rendered with every class in turn, all else fixed, other attributes and a planted cue too
    (twin error G1).

    Raises VceError on a world that is not rendered.
    """
    _with_twins(name)
    n_classes, attribute = len(world(name).class_names), world(name).attribute
    if attribute:
        factors = face_factors(ids)
        return torch.stack([faces.render(faces.twin(factors, attribute, label)) for label in range(n_classes)], 1)
    factors = scene_factors(name, ids)
    labels = [torch.full((len(ids),), label) for label in range(n_classes)]
    return torch.stack([_render(name, ids, factors, scenes.twin(factors, label))[0] for label in labels], 1)


def interventions(name: str, ids: tuple[str, ...], target: Tensor) -> dict[str, Tensor]:
    """The images N×C×H×W under do(factor): the class factor, `label`, set to `target`; of a face every other attribute
    flipped; of a scene the background's palette set to another, and, where the world plants a cue, the cue removed from
    the images that carry it and pasted on the others.

    Raises VceError on a world that is not rendered.
    """
    _with_twins(name)
    attribute = world(name).attribute
    if attribute:
        faced = face_factors(ids)
        others = [other for other in faces.ATTRIBUTES if other != attribute]
        flipped = {other: faces.render(faces.twin(faced, other)) for other in others}
        return {"label": faces.render(faces.twin(faced, attribute, target))} | flipped
    factors = scene_factors(name, ids)
    other = replace(factors, palette=(factors.palette + 1) % len(scenes.PALETTE))
    changed = {"label": scenes.twin(factors, target), "palette": other}
    images = {factor: _render(name, ids, factors, scene)[0] for factor, scene in changed.items()}
    if world(name).cue is not None:
        images["cue"] = _render(name, ids, factors, toggle=True)[0]
    return images


def scrambled(digits: Tensor, ids: tuple[str, ...]) -> Tensor:
    """Images N×1×H×W of equal amplitude spectrum and mean whose Fourier phases are those of noise seeded by the id;
    not clamped, so that some values leave [0, 1]."""
    noise = Streams(WORLD_SEED, ids, (0,) * len(ids)).normal(digits.shape[1:], "phase")
    spectrum, phases = torch.fft.rfft2(digits.double()), torch.fft.rfft2(noise.double()).angle()
    phases[..., 0, 0] = 0  # the mean keeps its sign
    return torch.fft.irfft2(torch.polar(spectrum.abs(), phases), s=digits.shape[-2:]).float()


def _with_twins(name: str) -> None:
    if not world(name).rendered:
        rendered = ", ".join(other.name for other in WORLDS.values() if other.rendered)
        raise VceError(f"world {name!r} has no twins and no interventions; choose one of {rendered}")


def _render(
    name: str,
    ids: tuple[str, ...],
    factors: scenes.Factors,
    changed: scenes.Factors | None = None,
    toggle: bool = False,
) -> tuple[Tensor, Tensor]:
    """Images and masks of the `changed` scenes (the scenes themselves by default); the cue stays with the images that
    `factors` gives it to, or, with `toggle`, goes to all the others."""
    spec = world(name)
    images, masks = scenes.render(changed or factors, alike=spec.alike)
    if spec.cue is None:
        return images, masks
    carries, site = cues.planted(spec.cue, ids, factors.label, WORLD_SEED)
    cued = cues.overlay(images, spec.cue, site)
    return torch.where((carries ^ toggle)[:, None, None, None], cued, images), masks


def _pool(name: str, needed: int, data: Path) -> tuple[np.ndarray, np.ndarray]:
    artifact, attribute = world(name).artifact, world(name).attribute
    if attribute:
        ids = tuple(f"face-{i:05d}" for i in range(2 * needed + 100))  # only three in ten are bald
        return np.array(ids), face_factors(ids).attribute(attribute).numpy()
    if artifact is None:
        first = 50_000 if name == "scenes-empty" else 0  # no background that anything was trained on
        ids = tuple(f"scene-{i:05d}" for i in range(first, first + int(1.2 * needed) + 100))
        return np.array(ids), scene_factors(name, ids).label.numpy()
    _, labels = _mnist(data / artifact)
    return np.array([f"mnist-{i:04d}" for i in range(len(labels))]), labels


@functools.lru_cache(maxsize=1)
def _mnist(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """5,000 rows of 784 pixel values and a label."""
    try:
        table = pd.read_csv(path, header=None, compression="gzip").to_numpy(dtype=np.float64)
        if table.shape[1:] != (785,):
            raise ValueError(f"rows of {table.shape[1:]} instead of 785 values")
        if not np.isfinite(table).all():
            raise ValueError("a value is missing")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise VceError(f"{path}: not a readable MNIST table ({error}); delete it and run `vce data fetch`") from error
    return table[:, :-1].astype(np.uint8), table[:, -1].astype(np.int64)

"""What a method of the comparison may use: the explained classifier, the images that it was trained on, and what was
trained for generative methods beside it."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from common.classifiers.base import Classifier
from common.classifiers.checkpoints import load_checkpoint
from common.data import datasets
from common.generators.vae import VAE, load_vae


@dataclass(frozen=True)
class Bench:
    """The classifier `kind` of one world and training seed. `training` are the images that it learned from,
    `calibration` those that it was calibrated on; `folder` holds what `comparison.train` made for this world and
    seed."""

    world: str
    kind: str
    seed: int
    classifier: Classifier
    training: datasets.Images
    calibration: datasets.Images
    folder: Path

    def vae(self) -> VAE:
        """The generator that all methods of this world and seed share."""
        return load_vae(self.file("vae"), datasets.world(self.world).image_shape)

    def file(self, part: str, own: bool = False) -> Path:
        """Where a trained part lies: one that all classifiers share, or this classifier's `own`."""
        return self.folder / (f"{self.kind}-{part}.safetensors" if own else f"{part}.safetensors")


def paths_by_world(items: list[str]) -> dict[str, Path]:
    """WORLD=PATH of a command line."""
    return {world: Path(folder) for world, folder in (item.split("=", 1) for item in items)}


@torch.no_grad()
def answers(classifier: torch.nn.Module, images: Tensor) -> Tensor:
    """The classes that a classifier sees in N images."""
    return torch.cat([classifier(x).argmax(1) for x in images.split(256)])


def load_benches(
    world: str, kinds: list[str], seed: int, checkpoints: Path, table: pd.DataFrame, data: Path, folder: Path
) -> list[Bench]:
    """A bench for every kind of classifier, from the checkpoints KIND-SEED.safetensors."""
    training, calibration = (datasets.load(world, table, split, data) for split in ("systems", "calibration"))
    nets = {kind: load_checkpoint(checkpoints / f"{kind}-{seed}.safetensors") for kind in kinds}
    return [Bench(world, kind, seed, net, training, calibration, folder) for kind, net in nets.items()]

"""IM1 (Van Looveren and Klaise 2021): does an image look more like its target class than like its source class?

    IM1 = mse(x′, AE_t(x′)) / (mse(x′, AE_y(x′)) + 1e-7)

AE_c is an autoencoder fitted on images of class c alone, here those of the oracles' split. Below 1: x′ has moved over.

    python -m common.metrics.im1 --world mnist --splits S.parquet --recipe '{"epochs": 60}' --out F
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data import datasets
from common.errors import VceError, one_line_errors
from common.progress import Progress
from common.tensors import not_a, read_tensors, write_tensors


@dataclass(frozen=True)
class Recipe:
    """How each class autoencoder is trained."""

    epochs: int
    batch_size: int = 32
    learning_rate: float = 2e-3


def autoencoder() -> nn.Sequential:
    """conv16–pool–conv8–pool–conv8 of 3×3 kernels and its mirror, on 28×28 grey images."""
    down = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]  # fmt: skip
    up = [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(8, 16, 3, padding=1),
          nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(16, 1, 3, padding=1), nn.Sigmoid()]  # fmt: skip
    nn.init.constant_(up[-2].bias, -2.0)  # most pixels are black: from grey, most units die on the way there
    return nn.Sequential(*down, *up)


class ClassAutoencoders(nn.Module):
    """One autoencoder per class of grey digits."""

    def __init__(self, n_classes: int):
        super().__init__()
        networks = nn.ModuleList(autoencoder() for _ in range(n_classes))
        self.of_class = networks.to(memory_format=torch.channels_last)  # twice as fast

    @torch.no_grad()
    def errors(self, images: Tensor, classes: Tensor, batch_size: int = 256) -> Tensor:
        """N mean squared errors of N×1×28×28 images in [0, 1], each under the autoencoder of its own of N classes."""
        found = torch.empty(len(images))
        for label, network in enumerate(self.of_class):
            for rows in (classes == label).nonzero()[:, 0].split(batch_size):
                found[rows] = (network(images[rows]) - images[rows]).square().flatten(1).mean(1)
        return found

    def im1(self, images: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """N values; lower is more like the target than like the source."""
        return self.errors(images, target) / (self.errors(images, source) + 1e-7)


def train_autoencoders(
    fit: datasets.Images, held_out: datasets.Images, n_classes: int, recipe: Recipe, progress: Progress
) -> ClassAutoencoders:
    """Fit each autoencoder to its own class: mean squared error, Adam, one-cycle rate; same bits every time.

    Raises VceError for one that does not reconstruct held-out images of its class better than their mean image does: a
    dead one would make IM1 mean nothing.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        networks = ClassAutoencoders(n_classes)
    for label, network in enumerate(networks.of_class):
        images = fit.images[fit.labels == label]
        optimiser = torch.optim.Adam(network.parameters(), recipe.learning_rate, fused=True)
        batches = -(-len(images) // recipe.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, 2 * recipe.learning_rate, total_steps=recipe.epochs * batches
        )
        for _ in range(recipe.epochs):
            for rows in torch.randperm(len(images), generator=generator).split(recipe.batch_size):
                optimiser.zero_grad()
                loss = F.mse_loss(network(images[rows]), images[rows])
                loss.backward()
                optimiser.step()
                schedule.step()
        held = held_out.images[held_out.labels == label]
        with torch.no_grad():
            error, of_mean = F.mse_loss(network(held), held), F.mse_loss(images.mean(0).expand_as(held), held)
        if not error < of_mean:
            raise VceError(
                f"the autoencoder of class {label} has learned nothing: held-out error {error:.4f}, that of the mean"
                f" image {of_mean:.4f}; raise `epochs` or lower `learning_rate` of `autoencoders` in config/"
            )
        progress.advance()
    return networks.eval().requires_grad_(False)


def load_autoencoders(path: Path | str) -> ClassAutoencoders:
    """The autoencoders in a file of this job, frozen. Raises VceError when it is damaged or not one of ours."""
    header, state = read_tensors(path, "class-autoencoder")
    try:
        networks = ClassAutoencoders(header["n_classes"])
        networks.load_state_dict(state, strict=True)
    except (KeyError, RuntimeError) as error:
        raise not_a("class-autoencoder", path, "its tensors are not those of its networks") from error
    return networks.eval().requires_grad_(False)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", required=True, help="a world of grey digits")
    parser.add_argument("--splits", type=Path, required=True, help="the split table of the world")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--recipe", type=json.loads, required=True, help="JSON fields of Recipe")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    args = parser.parse_args()
    n_classes = len(datasets.world(args.world).class_names)
    table = pd.read_parquet(args.splits)
    fit, held_out = (datasets.load(args.world, table, split, args.data) for split in ("oracles", "calibration"))
    with Progress(f"autoencoders {args.world}", total=n_classes, unit="classes") as progress:
        networks = train_autoencoders(fit, held_out, n_classes, Recipe(**args.recipe), progress)
    write_tensors(args.out, "class-autoencoder", networks.state_dict(), {"n_classes": n_classes, "recipe": args.recipe})


if __name__ == "__main__":
    main()

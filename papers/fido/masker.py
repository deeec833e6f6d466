"""An amortised masker after Dabkowski and Gal (NeurIPS 2017): one network draws the map of any image at once.

    min_M  λ₁ TV(M) + λ₂ mean(M) − log f_c(Φ(x, M)) + λ₃ f_c(Φ(x, 1 − M))^λ₄,     Φ(x, M) = M⊙x + (1 − M)⊙A

A is the blurred image or a random colour, drawn per image. The network is small, trained on the images of the explained
systems, for one classifier; its settings are ours (chosen on tuning images), not the published ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import VceError
from common.generators.infill import Blur
from common.generators.inpainting import UNet
from common.tensors import not_a, read_tensors, write_tensors


@dataclass(frozen=True)
class Recipe:
    """How a masker is trained; `variation`, `area`, `destroy`, `power` are λ₁ to λ₄; `sigma`: of the blur, pixels."""

    epochs: int
    widths: tuple[int, ...] = (16, 32, 48)
    variation: float = 3.0
    area: float = 4.0
    destroy: float = 2.0
    power: float = 0.3
    sigma: float = 2.5
    batch_size: int = 32
    learning_rate: float = 4e-3


class Masker(UNet):
    """From N×C×H×W images in [0, 1] and N classes c to maps N×H×W in [0, 1], 1 keeps: one map per class is drawn, and
    that of c is taken. Raises VceError for images of another shape."""

    def __init__(self, image_shape: tuple[int, int, int], widths: tuple[int, ...], n_classes: int):
        super().__init__(image_shape, widths)
        self.n_classes = n_classes
        self.head = nn.Sequential(nn.Conv2d(widths[0], 4 * n_classes, 3, 1, 1), nn.PixelShuffle(2), nn.Sigmoid())

    def forward(self, images: Tensor, c: Tensor) -> Tensor:
        maps = self.decode(self.features(images, images.new_ones(len(images), *images.shape[2:])))
        return maps[torch.arange(len(images)), c]


def train_masker(
    classifier: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, seed: int, progress: Callable | None = None
) -> Masker:
    """Fit a masker to a frozen classifier: Adam, one-cycle rate; same seed, same bits. Raises VceError when the loss
    stops being finite."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        masker = Masker(tuple(images.shape[1:]), tuple(recipe.widths), int(labels.max()) + 1)
    generator = torch.Generator().manual_seed(seed)
    steps = recipe.epochs * -(-len(images) // recipe.batch_size)
    optimiser = torch.optim.Adam(masker.parameters(), recipe.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps)
    blurred = Blur(recipe.sigma)(images, images.new_zeros(len(images), 1, 1, 1), None)[:, 0]
    for epoch in range(recipe.epochs):
        for rows in torch.randperm(len(images), generator=generator).split(recipe.batch_size):
            x, c = images[rows], labels[rows]
            colour = torch.rand(len(x), x.shape[1], 1, 1, generator=generator)
            coin = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
            ground = torch.where(coin, blurred[rows], colour)
            mask = masker(x, c)
            log_p = classifier(torch.cat([torch.lerp(ground, x, m[:, None]) for m in (mask, 1 - mask)])).log_softmax(1)
            kept, left = log_p.gather(1, c.repeat(2)[:, None])[:, 0].chunk(2)
            variation = sum(mask.diff(dim=axis).abs().mean() for axis in (1, 2))
            loss = recipe.variation * variation + recipe.area * mask.mean() - kept.mean()
            loss = loss + recipe.destroy * (recipe.power * left).exp().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        # the last step of an epoch is not in its loss
        if not (math.isfinite(loss.item()) and all(value.isfinite().all() for value in masker.parameters())):
            raise VceError(f"masker: the loss is not finite in epoch {epoch + 1}; lower `learning_rate` in config/")
        if progress:
            progress({"epoch": epoch + 1, "epochs": recipe.epochs})
    return masker.eval().requires_grad_(False)


def save_masker(masker: Masker, path: Path, facts: dict) -> None:
    """Write a trained masker atomically."""
    header = {name: getattr(masker, name) for name in ("image_shape", "widths", "n_classes")}
    write_tensors(path, "masker", masker.state_dict(), {**header, "facts": facts})


def load_masker(path: Path | str) -> Masker:
    """The masker in a file of `save_masker`, in eval mode, frozen. Raises VceError when it is damaged or no masker."""
    header, state = read_tensors(path, "masker")
    try:
        masker = Masker(tuple(header["image_shape"]), tuple(header["widths"]), header["n_classes"])
        masker.load_state_dict(state, strict=True)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise not_a("masker", path, "its tensors are not those of its network") from error
    return masker.eval().requires_grad_(False)

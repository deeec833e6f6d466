"""The kit's own problems: small seeded pictures and classifiers of which something is known in advance.

A picture is a smooth grey ground with two equal bright spots side by side, one in either half; their height is the
class. Both halves say the same, so a classifier that reads one of them leaves the other irrelevant, not empty.
"""

import functools
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.explain import Streams

N, CLASSES = 8, 3
SHAPES = ((3, 16, 16), (1, 28, 28))
NORM, MARGIN = 10.0, 2.0  # of the linear classifier: ‖w‖₂, and |w·x + b| of every image


@dataclass(frozen=True)
class Problem:
    """N×C×H×W images in [0, 1] with ids, their N classes, and the N classes asked for, of one classifier."""

    classifier: nn.Module
    images: Tensor
    source: Tensor
    target: Tensor
    ids: tuple[str, ...]

    @property
    def rng(self) -> Streams:
        return Streams(0, self.ids, tuple(self.target.tolist()))

    def __getitem__(self, rows: Sequence[int]) -> "Problem":
        """Some of the samples, in the given order."""
        rows = list(rows)
        ids = tuple(self.ids[row] for row in rows)
        return Problem(self.classifier, self.images[rows], self.source[rows], self.target[rows], ids)


def asked(classifier: nn.Module, images: Tensor) -> Problem:
    """From the class that is seen in each image to the runner-up."""
    with torch.no_grad():
        best = classifier(images).topk(2, 1).indices
    return Problem(classifier, images, best[:, 0], best[:, 1], tuple(f"image-{k}" for k in range(len(images))))


def smooth(n: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """n×C×H×W noise without high frequencies, standard normal at its 4×4 knots."""
    knots = torch.randn(n, shape[0], 4, 4, generator=generator)
    return F.interpolate(knots, shape[1:], mode="bilinear", align_corners=True)


def pictures(n: int, shape: tuple[int, int, int], seed: int) -> tuple[Tensor, Tensor]:
    """n×C×H×W pictures in [0, 1] and their n classes."""
    generator, (_, height, width) = torch.Generator().manual_seed(seed), shape
    labels = torch.arange(n) % CLASSES
    jitter = torch.rand(n, 1, 1, 1, generator=generator) - 0.5
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
    centre = ((labels + 1) * height / 4).view(-1, 1, 1, 1) + jitter
    across = torch.minimum((columns - width / 4).abs(), (columns - 3 * width / 4).abs())
    spots = (-((rows - centre).square() + across.square()) / (2 * (height / 8) ** 2)).exp()
    return (0.35 + 0.08 * smooth(n, shape, generator) + 0.3 * spots).clamp(0, 1), labels


def trained(shape: tuple[int, int, int] = SHAPES[0]) -> Problem:
    """A convolutional network that learned the pictures."""
    return asked(deepcopy(_learned(shape, False)), pictures(N, shape, 1)[0])


def half_blind(shape: tuple[int, int, int] = SHAPES[0]) -> Problem:
    """As `trained`, of a network that reads only the left half of an image: f(x) does not depend on the right one."""
    return asked(deepcopy(_learned(shape, True)), pictures(N, shape, 1)[0])


def randomised(problem: Problem) -> Problem:
    """The same question to the same network with new random weights."""
    network = _network(tuple(problem.images.shape[1:]), False, seed=1).eval().requires_grad_(False)
    return Problem(network, problem.images, problem.source, problem.target, problem.ids)


def linear(shape: tuple[int, int, int] = SHAPES[0]) -> Problem:
    """Logits (0, w·x + b) of images near grey, half of them on either side: w·x + b = ±`MARGIN`, ‖w‖₂ = `NORM`.

    w is smooth, so that a method whose generator draws smooth images can follow it; what varies in the images is
    orthogonal to w.
    """
    generator = torch.Generator().manual_seed(0)
    w = smooth(1, shape, generator).flatten()
    w = NORM * w / w.norm()
    noise = 0.05 * smooth(N, shape, generator).flatten(1)
    side = torch.tensor([-1.0, 1.0]).repeat(N // 2)[:, None]
    images = 0.5 + noise + (side * MARGIN - (noise @ w)[:, None]) * w / NORM**2
    head = nn.Linear(len(w), 2)
    with torch.no_grad():
        head.weight.copy_(torch.stack([torch.zeros_like(w), w]))
        head.bias.copy_(torch.stack([torch.zeros(()), -0.5 * w.sum()]))
    return asked(nn.Sequential(nn.Flatten(), head).eval().requires_grad_(False), images.view(N, *shape))


def constant(shape: tuple[int, int, int] = SHAPES[0]) -> Problem:
    """The same logits whatever the image; their gradient is zero, not missing."""
    return asked(_Constant().requires_grad_(False), pictures(N, shape, 1)[0])


class _Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([1.0, 0.5, 0.0]))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits + 0 * images.flatten(1).sum(1, keepdim=True)


class _LeftHalf(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[..., : images.shape[-1] // 2]


def _network(shape: tuple[int, int, int], left: bool, seed: int) -> nn.Module:
    channels, height, width = shape
    places = (height // 4) * (width // (8 if left else 4))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return nn.Sequential(
            _LeftHalf() if left else nn.Identity(),
            nn.Conv2d(channels, 12, 3, 2, 1), nn.SiLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.SiLU(), nn.Flatten(),
            nn.Linear(24 * places, CLASSES),
        )  # fmt: skip


@functools.cache
def _learned(shape: tuple[int, int, int], left: bool) -> nn.Module:
    network, (images, labels) = _network(shape, left, seed=0), pictures(384, shape, 0)
    adam = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(60):
        rows = torch.arange(step, 384, 6)
        loss = F.cross_entropy(network(images[rows]), labels[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return network.eval().requires_grad_(False)

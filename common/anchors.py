"""Trivial anchors that stand in every table: explainers that need no idea (MEASUREMENT: realism, sparsity, place).

Each keeps the contract's shape: N×S×C×H×W paths over `strengths`. Pixel ascent, the remaining anchor, is APGD-l2 in
`common.attacks`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.explain import Streams
from common.metrics.perturbation import pixel_change


def identity(images: Tensor, strengths: Sequence[float]) -> Tensor:
    """Doing nothing, at every strength."""
    return images[:, None].repeat(1, len(strengths), 1, 1, 1)


def random_direction(images: Tensor, strengths: Sequence[float], rng: Streams) -> Tensor:
    """One Gaussian direction per sample at the l2 radii `strengths`, clipped to [0, 1]."""
    noise = rng.normal(images.shape[1:], "anchor")
    unit = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return towards(images, images + unit, strengths)


def towards(images: Tensor, destination: Tensor, strengths: Sequence[float]) -> Tensor:
    """The straight path x + α(destination − x), clipped to [0, 1], at α in `strengths`."""
    alpha = torch.tensor(strengths, dtype=images.dtype).view(1, -1, 1, 1, 1)
    return (images[:, None] + alpha * (destination - images)[:, None]).clamp(0, 1)


def class_mean_difference(images: Tensor, source: Tensor, target: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
    """x + μ_target − μ_source with class means of the reference images."""
    means = torch.stack([reference[labels == k].mean(0) for k in range(int(labels.max()) + 1)])
    return images + means[target] - means[source]


def nearest_real(images: Tensor, target: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
    """For each image the l2-nearest reference image of its target class."""
    distance = torch.cdist(images.flatten(1).double(), reference.flatten(1).double())
    return reference[distance.masked_fill(labels[None] != target[:, None], torch.inf).argmin(1)]


def threshold_to_count(images: Tensor, counterfactuals: Tensor, count: Tensor) -> Tensor:
    """Keep the `count` (N) most changed pixels of each N×C×H×W counterfactual and restore the original elsewhere."""
    change = pixel_change(counterfactuals - images).flatten(1)
    rank = change.argsort(1, descending=True).argsort(1).view(len(images), 1, *images.shape[2:])
    return torch.where(rank < count.view(-1, 1, 1, 1), counterfactuals, images)

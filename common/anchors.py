"""Trivial anchors that stand in every table: explainers that need no idea (MEASUREMENT: realism, sparsity, place).

Each keeps the contract's shape: N×S×C×H×W paths over `strengths`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from common.attacks import apgd_l2
from common.data import datasets
from common.explain import CounterfactualBatch, Streams, finish, log_confidence
from common.metrics.perturbation import pixel_change

ALPHAS = tuple(j / 8 for j in range(1, 9))


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


def explain_anchors(
    pairs: datasets.Images,
    target: Tensor,
    reference: datasets.Images,
    world: str,
    classifier: nn.Module,
    rng: Streams,
    radii: Sequence[float],
) -> dict[str, CounterfactualBatch]:
    """The path of every anchor by name, for the N samples of `pairs` towards their N `target` classes.

    `identity` has one image, `random` the l2 `radii`; `class-mean` and `nearest-real`, of the `reference` images, and
    `twin`, where the world is rendered, are straight paths at `ALPHAS`.
    """
    x, source = pairs.images, pairs.labels
    mean_shift = class_mean_difference(x, source, target, reference.images, reference.labels)
    nearest = nearest_real(x, target, reference.images, reference.labels)
    paths = {
        "identity": (identity(x, (0.0,)), (0.0,)),
        "random": (random_direction(x, radii, rng), radii),
        "class-mean": (towards(x, mean_shift, ALPHAS), ALPHAS),
        "nearest-real": (towards(x, nearest, ALPHAS), ALPHAS),
    }
    if datasets.world(world).rendered:
        twin = datasets.twins(world, pairs.ids)[torch.arange(len(x)), target]
        paths["twin"] = (towards(x, twin, ALPHAS), ALPHAS)
    return {
        name: finish(x, images, target, classifier=classifier, strengths=strengths)
        for name, (images, strengths) in paths.items()
    }


def pixel_ascent(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: nn.Module,
    rng: Streams,
    strengths: Sequence[float],
    callback: Callable[[dict], None] | None = None,
    iterations: int = 25,
) -> CounterfactualBatch:
    """The strongest pixel-space anchor, in the contract's shape: APGD on log p_f(target) in l2 balls of radius
    `strengths`."""
    z, objective = rng.normal(images.shape[1:], "start"), log_confidence(classifier, target)
    found = [apgd_l2(images, objective, radius, z, iterations, callback=callback) for radius in strengths]
    passes = torch.stack([ascent.passes for ascent in found], 1)
    return finish(
        images,
        torch.stack([ascent.x for ascent in found], 1),
        target,
        classifier=classifier,
        strengths=strengths,
        diverged=torch.stack([ascent.diverged for ascent in found], 1),
        steps=torch.stack([ascent.steps for ascent in found], 1),
        passes=(passes, passes),
    )

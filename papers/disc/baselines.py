"""What DISC is compared with: inversion in pixel space, with the same budget and the same stopping rule (DISC spec
§2.3, §5). `common.anchors.pixel_ascent` is the pixel attack beside them.

Each keeps the contract and starts at the image: from noise, features alone do not find it back (spec §8.9).
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from common.explain import CounterfactualBatch, Streams
from common.generators.priors import FreePixels, Optimiser
from papers.disc.consistency import (
    Semantics,
    class_confidence,
    equal_change,
    feature_statistics,
    layers_alone,
    margin_target,
    with_variation,
)
from papers.disc.explain import counterfactuals
from papers.disc.method import JOINT, Fit, Reached, Schedule

VARIATION = 0.3  # weight of the total variation


def pixels(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: nn.Module,
    rng: Streams | None = None,
    strengths: Sequence[float] = (0.5, 0.9, 0.99),
    callback: Callable[[dict], None] | None = None,
    consistency: Semantics | None = None,
    lambdas: tuple[float, float, float] = (1.0, 0.0, 0.2),
    schedule: Schedule = JOINT,
    learning_rate: float = FreePixels.learning_rate,
) -> CounterfactualBatch:
    """Free pixels under total variation and a `consistency`, or none (§2.3): the contract of `common.explain`, its path
    the first iterate that reaches each τ in `strengths`, or the last. Nothing is drawn from `rng`."""
    return counterfactuals(
        images, source, target, classifier=classifier, strengths=strengths,
        start=at(images[source != target], learning_rate),
        consistency=with_variation(consistency, VARIATION / lambdas[0]),  # total variation is not weighed by λ₁
        lambdas=lambdas, schedule=schedule, callback=callback,
    )  # fmt: skip


iso = pixels  # image-space optimisation: cross-entropy and total variation
lso = partial(pixels, consistency=layers_alone)  # latent-space optimisation: consistency in F's layers
statistics = partial(pixels, consistency=feature_statistics)  # after DeepInversion


def at(images: Tensor, learning_rate: float) -> Fit:
    """Free pixels at N×C×H×W images: what baselines start from."""
    prior = FreePixels(learning_rate)
    return Fit(Optimiser(prior, prior.at(images)), images, torch.zeros(len(images)))


def pushed(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    reached: Callable[[Tensor], Reached],
    *,
    classifier: nn.Module,
    start: Fit,
    callback: Callable[[dict], None] | None = None,
    **settings,
) -> CounterfactualBatch:
    """A search that is pushed on, by a margin that does not fade, until it is as far as a run that it is compared with:
    `reached(rows)` measures the share of the way, 1, for the samples `rows`. `settings` are those of `invert`."""
    rows = (source != target).nonzero()[:, 0]
    return counterfactuals(
        images, source, target, classifier=classifier, strengths=(1.0,), start=start[rows],
        functional=margin_target(target[rows]), reached=reached(rows), callback=callback, **settings,
    )  # fmt: skip


def iso_at(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    reached: Callable[[Tensor], Reached],
    *,
    classifier: nn.Module,
    callback: Callable[[dict], None] | None = None,
    lambdas: tuple[float, float, float] = (1.0, 0.0, 0.2),
    schedule: Schedule = JOINT,
    learning_rate: float = FreePixels.learning_rate,
) -> CounterfactualBatch:
    """ISO, pushed until `reached(rows)` is 1: image-space optimisation as far as another run."""
    return pushed(
        images, source, target, reached, classifier=classifier, start=at(images, learning_rate), callback=callback,
        consistency=with_variation(None, VARIATION / lambdas[0]), lambdas=lambdas, schedule=schedule,
    )  # fmt: skip


def to_change(images: Tensor, distance: Tensor, target: Tensor, level: float) -> Callable[[Tensor], Reached]:
    """The way to a mean |x̄ − x| of at least `distance`, N values, and to a probability of the target of `level`: what
    has not got there is pushed further."""

    def way(chosen: Tensor) -> Reached:
        change, mine = equal_change(images[chosen], distance[chosen]), class_confidence(target[chosen])
        return lambda *state: change(*state).minimum(mine(*state) / level)

    return way


def to_confidence(target: Tensor, confidence: Tensor) -> Callable[[Tensor], Reached]:
    """The way to a probability of the target of `confidence`, N values."""

    def way(chosen: Tensor) -> Reached:
        mine, wanted = class_confidence(target[chosen]), confidence[chosen].clamp(min=1e-12, max=1 - 2**-24)
        return lambda images, logits, rows: mine(images, logits, rows) / wanted[rows]

    return way

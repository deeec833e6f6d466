"""What DISC is compared with: inversion in pixel space, with the same budget and the same stopping rule (DISC spec
§2.3, §5). `common.anchors.pixel_ascent` is the pixel attack beside them.

Each keeps the contract and starts at the image: from noise, features alone do not find it back (spec §8.9).
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from common.explain import CounterfactualBatch, Streams
from common.generators.priors import FreePixels
from papers.disc.consistency import (
    Semantics,
    equal_change,
    feature_statistics,
    layers_alone,
    margin_target,
    with_variation,
)
from papers.disc.explain import Auxiliary, counterfactuals
from papers.disc.method import JOINT, Schedule

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
    auxiliary: Auxiliary | None = None,
    layers: Sequence[str] | None = None,
    lambdas: tuple[float, float, float] = (1.0, 2.0, 0.2),
    schedule: Schedule = JOINT,
    variation: float = VARIATION,
) -> CounterfactualBatch:
    """Free pixels under total variation and a `consistency`, or none: the first iterate that reaches each τ. Nothing is
    drawn from `rng`."""
    prior = FreePixels()
    return counterfactuals(
        images, source, target, classifier=classifier, strengths=strengths, prior=prior,
        weights=lambda rows: prior.at(images[rows]), consistency=with_variation(consistency, variation),
        auxiliary=auxiliary, layers=layers, lambdas=lambdas, schedule=schedule, callback=callback,
    )  # fmt: skip


iso = pixels  # image-space optimisation: cross-entropy and total variation
lso = partial(pixels, consistency=layers_alone)  # latent-space optimisation: consistency in F's layers
statistics = partial(pixels, consistency=feature_statistics)  # after DeepInversion


def iso_at(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    distance: Tensor,
    *,
    classifier: nn.Module,
    callback: Callable[[dict], None] | None = None,
    schedule: Schedule = JOINT,
    variation: float = VARIATION,
) -> CounterfactualBatch:
    """ISO at equal change: pushed on, by a margin that does not fade, until its mean |x̄ − x| is `distance`, N values,
    of the run that it is compared with. Its one strength is that share, 1."""
    prior, rows = FreePixels(), (source != target).nonzero()[:, 0]
    return counterfactuals(
        images, source, target, classifier=classifier, strengths=(1.0,), prior=prior,
        weights=lambda some: prior.at(images[some]), functional=margin_target(target[rows]),
        reached=equal_change(images[rows], distance[rows]), consistency=with_variation(None, variation),
        lambdas=(1.0, 0.0, 0.2), schedule=schedule, callback=callback,
    )  # fmt: skip

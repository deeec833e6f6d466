"""DISC's contract function: counterfactuals from a classifier, its auxiliary and one image, and nothing else."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import VceError
from common.explain import CounterfactualBatch, Streams, finish
from common.generators.priors import PRIORS, CoordinateNetwork, DeepImagePrior, Prior
from papers.disc.consistency import (
    Functional,
    class_confidence,
    class_target,
    coarse_to_fine,
    continued_target,
    handed_over,
    semantics,
)
from papers.disc.layers import Layers
from papers.disc.method import PROGRESSIVE, Fit, Reached, Schedule, fit, invert

FIT, FIT_LARGE = 1e-3, 1e-2  # mean squared pixel error, 30 and 20 dB, that a prior must reach before it is steered
WIDTHS = (16, 32, 32, 64, 64)  # channels of the deep image prior, by halvings of the image
SMALL = 64  # pixels; above, a coordinate network of this size no longer draws an image, and the bounds are wider


class Auxiliary(Protocol):
    """A companion of the classifier: from the activations of its `layers`, how far N images are from the data."""

    layers: tuple[str, ...]

    def __call__(self, activations: list[Tensor]) -> Tensor: ...


def explain(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: nn.Module,
    rng: Streams,
    strengths: Sequence[float] = (0.5, 0.9, 0.99),
    callback: Callable[[dict], None] | None = None,
    prior: Prior | str | None = None,
    auxiliary: Auxiliary | None = None,
    layers: Sequence[str] | None = None,
    lambdas: tuple[float, float, float] = (1.0, 0.4, 0.2),
    reading: str = "P-A",
    schedule: Schedule = PROGRESSIVE,
    bound: float | None = None,
    fitted: Fit | None = None,
) -> CounterfactualBatch:
    """DISC (§2.7): fit an untrained prior to the image, then steer it until F's probability of the target reaches each
    τ in `strengths`; each image of the path is the first iterate that does, or the last, which τ = 1 asks for.

    `classifier` F and `auxiliary`, its companion for manifold consistency (none: that term is off), are all that is
    seen besides the image; `prior` is a prior, `inr` or `dip`, by default the coordinate network up to 64 pixels and
    the deep image prior above. `reading` says what is made progressive (§2.6): P-A the weights of target and manifold,
    P-B the target, P-C the layers, P-D the prior's parameters, P-0 nothing, and it stops no earlier; `schedule` how
    long. Explanations that share a prior, layers and images may share its `fitted` (`fit_prior`).

    `reference` is what the prior drew before it was steered. A sample whose target is its source is skipped; one that
    the prior could not fit to a mean squared error of `bound` (by default .001 up to 64 pixels, .01 above), or whose
    loss is no number, diverged. Raises VceError for a τ outside (0, 1], an unknown layer, prior or reading, or images
    of another shape than the classifier's.
    """
    for tau in strengths:
        if not 0 < tau <= 1:
            raise VceError(f"strengths: τ = {tau:g} is no confidence above 0 and up to 1")
    shape = tuple(images.shape[1:])
    expected = getattr(classifier, "image_shape", shape)
    if shape != tuple(expected):
        raise VceError(f"images of shape {shape}: the classifier reads {tuple(expected)}; convert them first")
    prior, rows = prior_for(shape, prior), (source != target).nonzero()[:, 0]
    settings = progressive(reading, schedule, prior, target[rows])
    shared = fitted is not None and settings["schedule"].fit and "consistency" not in settings
    start = fitted[rows] if shared and len(rows) else None
    if start is None and len(rows):
        start = fit_prior(
            images[rows], classifier, rng[rows.tolist()], prior, layers, settings["schedule"].fit,
            consistency=settings.get("consistency", semantics), callback=callback,
        )  # fmt: skip
    return counterfactuals(
        images,
        source,
        target,
        classifier=classifier,
        strengths=strengths,
        start=start,
        auxiliary=auxiliary,
        layers=layers,
        bound=bound or (FIT_LARGE if max(shape[1:]) > SMALL else FIT),
        lambdas=lambdas,
        callback=callback,
        **settings,
    )


def fit_prior(
    images: Tensor,
    classifier: nn.Module,
    rng: Streams,
    prior: Prior,
    layers: Sequence[str] | None,
    iterations: int,
    **settings,
) -> Fit:
    """Stage 1 for N×C×H×W images, N streams and the named layers; `settings` are those of `papers.disc.method.fit`."""
    model = Layers(classifier, tuple(images.shape[1:]), layers)
    return fit(images, prior, prior.initial(rng), model, iterations, **settings)


def progressive(reading: str, schedule: Schedule, prior: Prior, target: Tensor) -> dict:
    """The settings of `invert` that a reading of "progressive" stands for; all spend the iterations of `schedule`.
    Raises VceError for an unknown one."""
    at_once = replace(schedule, ramp=0.0)
    readings = {
        "P-A": lambda: {"schedule": schedule},
        "P-B": lambda: {"schedule": at_once, "functional": continued_target(target)},
        "P-C": lambda: {"schedule": schedule, "consistency": handed_over},
        "P-D": lambda: {"schedule": at_once, "moving": coarse_to_fine(prior.groups)},
        "P-0": lambda: {"schedule": Schedule(0, schedule.fit + schedule.steer, 0.0, hold=schedule.fit)},
    }
    if reading not in readings:
        raise VceError(f"reading {reading!r} is unknown; choose one of {', '.join(readings)}")
    return readings[reading]()


def counterfactuals(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: nn.Module,
    strengths: Sequence[float],
    start: Fit | None,
    functional: Functional | None = None,
    reached: Reached | None = None,
    auxiliary: Auxiliary | None = None,
    layers: Sequence[str] | None = None,
    bound: float = math.inf,
    **settings,
) -> CounterfactualBatch:
    """The batch of an inversion: what DISC and its baselines share. `start` holds the priors of the samples whose
    target is not their source, if any; `functional` and `reached` are, by default, cross-entropy to the target and its
    probability; `settings` are those of `invert`."""
    n, s, same = len(images), len(strengths), source == target
    paths, reference = images[:, None].repeat(1, s, 1, 1, 1), images.clone()
    steps, diverged = torch.zeros(n, s, dtype=torch.long), torch.zeros(n, s, dtype=torch.bool)
    model = Layers(classifier, tuple(images.shape[1:]), layers, () if auxiliary is None else auxiliary.layers)
    rows = (~same).nonzero()[:, 0]
    if len(rows):
        found = invert(
            images[rows],
            start,
            model,
            functional or class_target(target[rows]),
            reached or class_confidence(target[rows]),
            strengths,
            manifold=auxiliary,
            **settings,
        )
        failed, iterations = found.diverged, settings["schedule"].fit
        if iterations:
            reference[rows], failed = start.images, failed | ~(start.error <= bound)
        paths[rows] = torch.where(found.images.isfinite(), found.images, images[rows, None])
        steps[rows] = found.steps + iterations
        diverged[rows] = failed[:, None].expand(-1, s)
    batch = finish(
        images, paths, target, classifier=classifier, strengths=strengths, diverged=diverged, steps=steps,
        passes=(steps, steps),
    )  # fmt: skip
    status = np.where(same[:, None].numpy(), "skipped", batch.status)
    return CounterfactualBatch(**{**vars(batch), "status": status, "reference": reference})


def prior_for(shape: tuple[int, int, int], prior: Prior | str | None) -> Prior:
    """The prior itself, or that of a name for images of this shape. Raises VceError for an unknown name."""
    if not isinstance(prior, str | None):
        return prior
    if prior not in (None, *PRIORS):
        raise VceError(f"prior {prior!r} is unknown; choose one of {', '.join(PRIORS)}")
    if prior == "dip" or (prior is None and max(shape[1:]) > SMALL):
        common = math.gcd(shape[1], shape[2])
        halvings = (common & -common).bit_length() - 1  # how often both sides can be halved
        return DeepImagePrior(shape, widths=WIDTHS[: max(halvings, 1)])
    return CoordinateNetwork(shape)

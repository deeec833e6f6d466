"""The terms of DISC's objective and their variants (DISC spec §2.2, §2.4, §2.6, §5): what the picture keeps, what the
output is asked for, how far a query has come. Each gives one value per query.

`share` is how much of the steering is done, from 0 to 1; only the progressive readings P-B and P-C look at it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Features = list[Tensor]
Semantics = Callable[[Tensor, Tensor, Features, Features, float], Tensor]  # (x̄, x, Ψ(x̄), Ψ(x), share)
Functional = Callable[[Tensor, Tensor, float], Tensor]  # (logits, rows, share)

PIXELS = 20.0  # weight of the pixel term beside the mean over layers
STAGES = (0.5, 0.7, 1.0)  # P-B: the probabilities that are asked for in turn; the last is the class itself


def semantics(images: Tensor, x: Tensor, features: Features, psi: Features, share: float = 0.0) -> Tensor:
    """L_sc: 20·MSE of the pixels plus the mean over layers of mean (Ψ_l(x̄) − Ψ_l(x))² / mean Ψ_l(x)², which has no
    scale, so that layers of any depth weigh alike."""
    return PIXELS * pixel_error(images, x) + layer_errors(features, psi).mean(0)


def handed_over(images: Tensor, x: Tensor, features: Features, psi: Features, share: float) -> Tensor:
    """P-C, layer continuation: of the pixels and the layers, in their order, the early ones weigh at first and the deep
    ones in the end; the weights always sum to those of `semantics` with equal ones."""
    terms = torch.cat([PIXELS * pixel_error(images, x)[None], layer_errors(features, psi) / max(len(psi), 1)])
    depth = torch.linspace(0, 1, len(terms), dtype=terms.dtype)
    weights = (1 - share) * (1 - depth) + share * depth
    return (weights * len(terms) / weights.sum().clamp_min(1e-12)) @ terms


def layers_alone(images: Tensor, x: Tensor, features: Features, psi: Features, share: float = 0.0) -> Tensor:
    """LSO: consistency in the classifier's layers instead of the pixels."""
    return layer_errors(features, psi).mean(0)


def feature_statistics(images: Tensor, x: Tensor, features: Features, psi: Features, share: float = 0.0) -> Tensor:
    """After DeepInversion: ‖μ(Ψ_l(x̄)) − μ(Ψ_l(x))‖₂ + ‖σ²(Ψ_l(x̄)) − σ²(Ψ_l(x))‖₂, over places, summed over layers. The
    query's own statistics, since one image has no batch, and a network without batch normalisation no running ones."""
    total = images.new_zeros(len(images))
    for a, b in zip(features, psi, strict=True):
        for statistic in (lambda h: h.mean((2, 3)), lambda h: h.var((2, 3), correction=0)):
            total = total + ((statistic(a) - statistic(b)).square().sum(1) + 1e-12).sqrt()
    return total


def with_variation(consistency: Semantics | None, weight: float) -> Semantics:
    """A consistency, or none, plus `weight` × the total variation of the picture: the prior of ISO and LSO."""

    def term(images: Tensor, x: Tensor, features: Features, psi: Features, share: float) -> Tensor:
        kept = 0.0 if consistency is None else consistency(images, x, features, psi, share)
        return kept + weight * total_variation(images)

    return term


def total_variation(images: Tensor) -> Tensor:
    """Mean |difference| of neighbours to the right and below: N values."""
    right, below = images.diff(dim=3).abs(), images.diff(dim=2).abs()
    return right.flatten(1).mean(1) + below.flatten(1).mean(1)


def pixel_error(images: Tensor, x: Tensor) -> Tensor:
    """Mean squared error over all colour values: N."""
    return (images - x).square().flatten(1).mean(1)


def layer_errors(features: Features, psi: Features) -> Tensor:
    """L×N scale-free errors; one row of zeros where there are no layers."""
    if not psi:
        return torch.zeros(1, 1)
    errors = [
        (a - b).square().flatten(1).mean(1) / b.square().flatten(1).mean(1).clamp_min(1e-12)
        for a, b in zip(features, psi, strict=True)
    ]
    return torch.stack(errors)


def class_target(target: Tensor) -> Functional:
    """Cross-entropy to the target class, N class indices."""
    return lambda logits, rows, share=0.0: F.cross_entropy(logits, target[rows], reduction="none")


def margin_target(target: Tensor) -> Functional:
    """max_{c ≠ ȳ} h_c − h_ȳ: does not fade when the target is reached, so that a search can be pushed on."""

    def loss(logits: Tensor, rows: Tensor, share: float = 0.0) -> Tensor:
        mine, others = _apart(logits, target[rows])
        return others.max(1).values - mine

    return loss


def continued_target(target: Tensor) -> Functional:
    """P-B, target continuation: P(ȳ) = .5, then .7, then the class itself, a third of the steering each."""

    def loss(logits: Tensor, rows: Tensor, share: float) -> Tensor:
        return _soft_cross_entropy(logits, target[rows], STAGES[min(int(share * len(STAGES)), len(STAGES) - 1)])

    return loss


def graded_target(target: Tensor, level: Tensor) -> Functional:
    """A hypothesis p, N values, about the probability of class c: −p log P(c) − (1 − p) log(1 − P(c)), least at
    P(c) = p. The square of P(c) − p has no gradient left where P(c) is near 0 (§2.4 allows both)."""
    return lambda logits, rows, share=0.0: _soft_cross_entropy(logits, target[rows], level[rows])


def regression_target(value: Tensor) -> Functional:
    """|F(x̄) − ȳ| for a classifier with one output; N values ȳ."""
    return lambda output, rows, share=0.0: (output[:, 0] - value[rows]).abs()


def class_confidence(target: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The soft-max probability of the target class, below 1 however it is rounded: 1 is never reached."""
    return lambda images, logits, rows: _probability(logits, target[rows]).clamp(max=1 - 2**-24)


def _soft_cross_entropy(logits: Tensor, target: Tensor, p: Tensor | float) -> Tensor:
    mine, others = _apart(logits.log_softmax(1), target)
    return -(p * mine + (1 - p) * others.logsumexp(1))


def _probability(logits: Tensor, target: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, target[:, None])[:, 0]


def _apart(values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The value of the target class, N, and N×K of the others, with −∞ in its place."""
    return values.gather(1, target[:, None])[:, 0], values.scatter(1, target[:, None], -torch.inf)


def equal_change(x: Tensor, distance: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Mean |x̄ − x| as a share of `distance`, N values: 1 is the change of the run that is compared with."""
    return lambda images, logits, rows: (images - x[rows]).abs().flatten(1).mean(1) / distance[rows].clamp_min(1e-12)


def coarse_to_fine(names: list[list[str]]) -> Callable[[float], set[str]]:
    """P-D, parameter continuation: `names` are groups of weights in the order in which they are set free; after the fit
    each group waits for its part of the steering."""
    return lambda share: {name for group in names[: 1 + int(share * len(names))] for name in group}

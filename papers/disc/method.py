"""DISC's inversion of a classifier with an untrained prior as generator (DISC spec §2.2, §2.6).

    x̄ = G_θ*(z),   θ* = argmin_θ  λ₁ L_sc(x̄, x) + w(k) [λ₂ L_mc(x̄) + λ₃ L_fc(F(x̄), ȳ)]

L_sc, semantics consistency, over the pixels and named layers Ψ_l of F; L_mc, manifold consistency, from an auxiliary of
the classifier; L_fc, functional consistency, the hypothesis ȳ about the output; w(k) the progressive schedule. The
paper's weights, layers and schedule are unknown: these are the spec's defaults.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.explain import ActiveSet
from common.generators.priors import Optimiser, Prior, Weights

PIXELS = 20.0  # weight of the pixel term beside the mean over layers
CHECK_EVERY = 16  # iterations between looks at who has finished

Features = list[Tensor]
Model = Callable[[Tensor], tuple[Tensor, Features, Features]]  # images → logits, Ψ_l, and what the auxiliary reads
Loss = Callable[[Tensor, Tensor], Tensor]  # (logits, rows) → a loss per query
Manifold = Callable[[Features], Tensor]  # the activations that it reads → a loss per query


@dataclass(frozen=True)
class Schedule:
    """w(k): 0 for the first `fit` iterations, which only reconstruct x, then rising to 1 `ramp` times as fast as the
    `steer` iterations that follow (P-A); without a `ramp` it is 1 at once."""

    fit: int = 160
    steer: int = 240
    ramp: float = 1.2

    def weight(self, k: int) -> float:
        if k < self.fit:
            return 0.0
        return min(1.0, self.ramp * (k - self.fit) / self.steer) if self.ramp else 1.0


PROGRESSIVE = Schedule()
JOINT = Schedule(fit=0, steer=400, ramp=0.0)  # P-0: as many iterations


@dataclass(frozen=True)
class Inversion:
    """For Q queries and S confidences: images Q×S×C×H×W, the first iterate with P(ȳ) ≥ τ_s, else the last; steps Q×S,
    iterations until then; reached Q×S; fitted Q×C×H×W, the iterate at the end of the fit, and error Q, its mean squared
    pixel error; diverged Q, whose loss was no number."""

    images: Tensor
    steps: Tensor
    reached: Tensor
    fitted: Tensor
    error: Tensor
    diverged: Tensor


def semantics(images: Tensor, x: Tensor, features: Features, psi: Features) -> Tensor:
    """L_sc per query: 20·MSE of the pixels plus the mean over layers of mean (Ψ_l(x̄) − Ψ_l(x))² / mean Ψ_l(x)², which
    has no scale, so that layers of any depth weigh alike."""
    loss = PIXELS * (images - x).square().flatten(1).mean(1)
    for a, b in zip(features, psi, strict=True):
        loss = loss + (a - b).square().flatten(1).mean(1) / b.square().flatten(1).mean(1).clamp_min(1e-12) / len(psi)
    return loss


def invert(
    x: Tensor,
    prior: Prior,
    weights: Weights,
    model: Model,
    functional: Loss,
    confidence: Loss,
    taus: Sequence[float],
    *,
    manifold: Manifold | None = None,
    lambdas: tuple[float, float, float] = (1.0, 2.0, 0.2),
    schedule: Schedule = PROGRESSIVE,
    callback: Callable[[dict], None] | None = None,
) -> Inversion:
    """Invert the classifier from Q queries x at once, each with its own weights θ.

    `confidence(logits, rows)` is P(ȳ), read from the same pass that the losses need; a query that reached every τ, or
    whose loss is no number, leaves the batch.
    """
    q, s = len(x), len(taus)
    levels = torch.tensor(taus, dtype=x.dtype)
    with torch.no_grad():
        psi = model(x)[1]
    found = Inversion(
        images=x[:, None].repeat(1, s, 1, 1, 1), steps=torch.zeros(q, s, dtype=torch.long),
        reached=torch.zeros(q, s, dtype=torch.bool), fitted=x.clone(), error=torch.zeros(q),
        diverged=torch.zeros(q, dtype=torch.bool),
    )  # fmt: skip
    active, searching, optimiser = ActiveSet(q), torch.ones(q, s, dtype=torch.bool), Optimiser(prior, weights)
    l1, l2, l3 = lambdas
    for k in range(schedule.fit + schedule.steer + 1):
        rows, w = active.rows, schedule.weight(k)
        images = optimiser.images()
        logits, features, read = model(images)
        loss = l1 * semantics(images, x[rows], features, [layer[rows] for layer in psi])
        if k == schedule.fit:
            found.fitted[rows] = images.detach()
            found.error[rows] = (images - x[rows]).detach().square().flatten(1).mean(1)
        if k >= schedule.fit:
            p = confidence(logits, rows).detach()
            _record(found, searching, rows, images.detach(), p, levels)
            loss = loss + w * l3 * functional(logits, rows)
            if manifold is not None:
                loss = loss + w * l2 * manifold(read)
        sound = loss.detach().isfinite()
        found.diverged[rows] |= ~sound & searching[rows].any(1)
        searching[rows] &= sound[:, None]
        if callback:
            callback({"k": k, "rows": rows, "images": images.detach(), "loss": loss.detach()})
        finished = ~searching[rows].any(1)
        if k == schedule.fit + schedule.steer:
            break
        if k % CHECK_EVERY == 0:
            keep = active.compact(finished)
            if keep is not None:
                if not len(keep):
                    break
                optimiser.keep(keep)
                continue
        optimiser.step(torch.where(finished, 0.0, loss))
    return found


def _record(found: Inversion, searching: Tensor, rows: Tensor, images: Tensor, p: Tensor, levels: Tensor) -> None:
    """The iterate goes to every confidence that is still searched; the search ends where it is reached."""
    mine = searching[rows]
    kept = found.images[rows]
    found.images[rows] = torch.where(mine[..., None, None, None], images[:, None], kept)
    found.steps[rows] += mine
    reached = mine & (p[:, None] >= levels)
    found.reached[rows] |= reached
    searching[rows] = mine & ~reached


def class_target(target: Tensor) -> Loss:
    """Cross-entropy to the target class, N class indices."""
    return lambda logits, rows: F.cross_entropy(logits, target[rows], reduction="none")


def class_confidence(target: Tensor) -> Loss:
    """The soft-max probability of the target class."""
    return lambda logits, rows: logits.softmax(1).gather(1, target[rows, None])[:, 0]


def graded_target(target: Tensor, level: Tensor) -> Loss:
    """(P(c) − p)²: a hypothesis p, N values, about the probability of class c."""
    return lambda logits, rows: (logits.softmax(1).gather(1, target[rows, None])[:, 0] - level[rows]).square()


def regression_target(value: Tensor) -> Loss:
    """|F(x̄) − ȳ| for a classifier with one output; N values ȳ."""
    return lambda output, rows: (output[:, 0] - value[rows]).abs()

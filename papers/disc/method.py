"""DISC's inversion of a classifier with an untrained prior as generator (DISC spec §2.2, §2.6).

    x̄ = G_θ*(z),   θ* = argmin_θ  λ₁ L_sc(x̄, x) + w(k) [λ₂ L_mc(x̄) + λ₃ L_fc(F(x̄), ȳ)]

L_sc, semantics consistency, over the pixels and named layers Ψ_l of F; L_mc, manifold consistency, from an auxiliary of
the classifier; L_fc, functional consistency, the hypothesis ȳ about the output; w(k) the progressive schedule. The
paper's weights, layers and schedule are unknown: these are the spec's defaults.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.explain import ActiveSet
from common.generators.priors import Optimiser, Prior, Weights
from papers.disc.consistency import Features, Functional, Semantics, pixel_error, semantics

CHECK_EVERY = 16  # iterations between looks at who has finished

Model = Callable[[Tensor], tuple[Tensor, Features, Features]]  # images → logits, Ψ_l, and what the auxiliary reads
Manifold = Callable[[Features], Tensor]  # the activations that it reads → a loss per query
Reached = Callable[[Tensor, Tensor, Tensor], Tensor]  # (images, logits, rows) → how far each query is


@dataclass(frozen=True)
class Schedule:
    """`fit` iterations that only reconstruct x, then `steer` iterations in which w rises from 0 to 1 `ramp` times as
    fast as they pass; without a `ramp` it is 1 at once. k counts from the first iteration of the steering; before k =
    `hold` no level counts as reached: a joint run has not drawn anything yet."""

    fit: int = 240
    steer: int = 160
    ramp: float = 1.2
    hold: int = 0

    def share(self, k: int) -> float:
        """How much of the steering is done."""
        return k / self.steer

    def weight(self, k: int) -> float:
        """w(k)."""
        return min(1.0, self.ramp * self.share(k)) if self.ramp else 1.0


PROGRESSIVE = Schedule()
JOINT = Schedule(fit=0, steer=400, ramp=0.0)  # of baselines: as many iterations


@dataclass(frozen=True)
class Fit:
    """Q queries before they are steered: their optimiser, what the prior draws, Q×C×H×W, and its mean squared error per
    query. `fit[rows]` is a copy that holds some of them, so that several searches may start from one fit."""

    optimiser: Optimiser
    images: Tensor
    error: Tensor

    def __getitem__(self, rows: Tensor) -> "Fit":
        return Fit(self.optimiser[rows], self.images[rows], self.error[rows])


@dataclass(frozen=True)
class Inversion:
    """For Q queries and S levels: images Q×S×C×H×W, the first iterate that reaches level s, else the last; steps Q×S,
    iterations until then; reached Q×S; diverged Q, whose loss was no number."""

    images: Tensor
    steps: Tensor
    reached: Tensor
    diverged: Tensor


def fit(
    x: Tensor,
    prior: Prior,
    weights: Weights,
    model: Model,
    iterations: int,
    *,
    consistency: Semantics = semantics,
    callback: Callable[[dict], None] | None = None,
) -> Fit:
    """Stage 1: let the prior draw Q queries x, each with its own weights θ, by semantics consistency alone."""
    optimiser, rows = Optimiser(prior, weights), torch.arange(len(x))
    with torch.no_grad():
        psi = model(x)[1]
    for k in range(iterations):
        images = optimiser.images()
        loss = consistency(images, x, model(images)[1], psi, 0.0)
        if callback:
            callback({"k": k, "rows": rows, "images": images.detach(), "loss": loss.detach()})
        optimiser.step(loss)
    with torch.no_grad():
        images = optimiser.images()
    return Fit(optimiser, images, pixel_error(images, x))


def invert(
    x: Tensor,
    start: Fit,
    model: Model,
    functional: Functional,
    reached: Reached,
    levels: Sequence[float],
    *,
    consistency: Semantics = semantics,
    manifold: Manifold | None = None,
    lambdas: tuple[float, float, float] = (1.0, 0.4, 0.2),
    schedule: Schedule = PROGRESSIVE,
    moving: Callable[[float], set[str] | None] = lambda share: None,
    callback: Callable[[dict], None] | None = None,
) -> Inversion:
    """Stage 2: steer Q queries x from where their priors `start`, which is left as it is, until F changes its mind.

    `reached(images, logits, rows)`, P(ȳ) or another measure of the way, is read from the pass that the losses need; a
    query that reached all `levels`, or whose loss is no number, leaves the batch. Losses and `moving`, the names of the
    weights that are free (none: all), know which share of the steering is done.
    """
    q, s = len(x), len(levels)
    thresholds = torch.tensor(levels, dtype=x.dtype)
    with torch.no_grad():
        psi = model(x)[1]
    found = Inversion(
        images=start.images[:, None].repeat(1, s, 1, 1, 1), steps=torch.zeros(q, s, dtype=torch.long),
        reached=torch.zeros(q, s, dtype=torch.bool), diverged=torch.zeros(q, dtype=torch.bool),
    )  # fmt: skip
    active, searching = ActiveSet(q), torch.ones(q, s, dtype=torch.bool)
    optimiser, (l1, l2, l3) = start.optimiser[active.rows], lambdas
    for k in range(schedule.steer + 1):
        rows, w, share = active.rows, schedule.weight(k), schedule.share(k)
        images = optimiser.images()
        logits, features, read = model(images)
        loss = l1 * consistency(images, x[rows], features, [layer[rows] for layer in psi], share)
        loss = loss + w * l3 * functional(logits, rows, share)
        if manifold is not None:
            loss = loss + w * l2 * manifold(read)
        sound = loss.detach().isfinite()
        mine = searching[rows] & sound[:, None]
        found.images[rows] = torch.where(mine[..., None, None, None], images.detach()[:, None], found.images[rows])
        found.steps[rows] += mine
        there = mine & (k >= schedule.hold) & (reached(images, logits, rows).detach()[:, None] >= thresholds)
        found.reached[rows] |= there
        searching[rows] &= ~there
        found.diverged[rows] |= ~sound & searching[rows].any(1)
        searching[rows] &= sound[:, None]
        finished = ~searching[rows].any(1)
        if callback:
            callback({"k": k, "rows": rows, "images": images.detach(), "loss": loss.detach()})
        if k == schedule.steer:
            break
        optimiser.step(torch.where(finished, 0.0, loss), moving(share))
        if k % CHECK_EVERY == 0:
            keep = active.compact(finished)
            if keep is not None:
                if not len(keep):
                    break
                optimiser = optimiser[keep]
    return found

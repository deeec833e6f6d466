"""Sparse VCE's contract functions: counterfactuals at given radii, and of least norm at given confidences."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from common.attacks import Ascent, apgd_l1, apgd_l2
from common.errors import VceError
from common.explain import CounterfactualBatch, Streams, finish, log_confidence
from common.metrics.perturbation import lp_norm
from papers.svce.lmo import oracle
from papers.svce.method import auto_frank_wolfe, frank_wolfe

OPTIMISERS = ("afw-a", "afw-b", "fw", "apgd")
ROUNDS = 7  # of bisection over the radius: its last bracket is 1/64 of the ceiling


def explain(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: nn.Module,
    rng: Streams,
    strengths: Sequence[float],
    callback: Callable[[dict], None] | None = None,
    optimiser: str = "afw-b",
    p: float = 1.5,
    iterations: int = 75,
    batch_size: int = 64,
) -> CounterfactualBatch:
    """Sparse visual counterfactuals: argmax log p_f(target | x) in the l_p ball of each radius, inside [0, 1] (§2.1).

    `strengths` are the radii ε. All N·S (image, radius) problems run in batches of `batch_size`, each with
    `iterations` + 1 passes; the start draw of an image is the same at all its radii. Raises VceError for a radius ≤ 0,
    p < 1, an unknown optimiser or an optimiser that has no such p.
    """
    solve = _solver(optimiser, p, iterations)
    n, s = len(images), len(strengths)
    radii = torch.tensor([float(radius) for radius in strengths]).repeat(n)
    z = rng.normal(images.shape[1:], "start")
    found = []
    for rows in torch.arange(n * s).split(batch_size):
        sample = rows // s
        objective = log_confidence(classifier, target[sample])
        found.append(solve(images[sample], objective, radii[rows], z[sample], None, callback))
    passes = torch.cat([ascent.passes for ascent in found]).view(n, s)
    return finish(
        images,
        torch.cat([ascent.x for ascent in found]).view(n, s, *images.shape[1:]),
        target,
        classifier=classifier,
        strengths=strengths,
        diverged=torch.cat([ascent.diverged for ascent in found]).view(n, s),
        steps=torch.cat([ascent.steps for ascent in found]).view(n, s),
        passes=(passes, passes),
        batch_size=batch_size,
    )


def explain_minimal(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: nn.Module,
    rng: Streams,
    strengths: Sequence[float],
    callback: Callable[[dict], None] | None = None,
    optimiser: str = "afw-b",
    p: float = 1.5,
    iterations: int = 75,
    ceiling: float,
    batch_size: int = 64,
) -> CounterfactualBatch:
    """Counterfactuals of least norm: min ‖x − x0‖_p subject to p_f(target | x) ≥ each threshold, inside [0, 1] (§2.1).

    `strengths` are the thresholds, ascending. The radius is bisected between 0 and `ceiling` in `ROUNDS` rounds; a
    round stops a sample at its threshold, and the samples that stopped leave the batch. A threshold out of reach at the
    ceiling leaves its best image there. Raises VceError for thresholds that are not ascending inside (0, 1).
    """
    if not all(0 < low < high < 1 for low, high in zip((1e-9, *strengths), strengths, strict=False)):
        raise VceError(f"strengths: thresholds must ascend inside (0, 1), not {tuple(strengths)}")
    solve = _solver(optimiser, p, iterations)
    n, z = len(images), rng.normal(images.shape[1:], "start")
    everything: list[Ascent] = []
    for rows in torch.arange(n).split(batch_size):
        objective = log_confidence(classifier, target[rows])
        low = torch.zeros(len(rows))
        for threshold in strengths:
            ascent, low = _least_radius(solve, images[rows], objective, z[rows], threshold, low, ceiling, p, callback)
            everything.append(ascent)

    def stacked(field: str) -> Tensor:
        values = [getattr(ascent, field) for ascent in everything]
        s = len(strengths)
        return torch.cat([torch.stack(values[i : i + s], 1) for i in range(0, len(values), s)])

    return finish(
        images,
        stacked("x"),
        target,
        classifier=classifier,
        strengths=strengths,
        diverged=stacked("diverged"),
        steps=stacked("steps"),
        passes=(stacked("passes"), stacked("passes")),
        batch_size=batch_size,
    )


def _least_radius(
    solve: Callable,
    x0: Tensor,
    objective: Callable,
    z: Tensor,
    threshold: float,
    low: Tensor,
    ceiling: float,
    p: float,
    callback: Callable[[dict], None] | None,
) -> tuple[Ascent, Tensor]:
    """Bisection over the radius of M images; `low` are radii known to be too small. Returns the nearest success, x0
    itself where that is one, with the cost of all rounds, and the new lower ends."""
    goal = math.log(threshold)
    L0, _ = objective(x0, torch.arange(len(x0)))
    one = torch.ones(len(x0), dtype=torch.long)
    best = Ascent(x0.clone(), L0, ~L0.isfinite(), one, one.clone())
    norm = torch.where(L0.ge(goal), 0.0, torch.inf)  # of the nearest success
    open_ = torch.nonzero(norm > 0)[:, 0]
    for k in range(ROUNDS):
        if not len(open_):
            break
        radius = (low + norm)[open_] / 2 if k else x0.new_full((len(open_),), ceiling)
        ascent = solve(x0[open_], lambda x, rows, o=open_: objective(x, o[rows]), radius, z[open_], goal, callback)
        best.steps[open_] += ascent.steps
        best.passes[open_] += ascent.passes
        hit, found = ascent.L.ge(goal), lp_norm(ascent.x - x0[open_], p)
        better = hit & (found < norm[open_])
        if k == 0:  # out of reach at the ceiling: its best image there
            better = torch.ones_like(hit)
            best.diverged[open_] = ascent.diverged
        who = open_[better]
        best.x[who], best.L[who] = ascent.x[better], ascent.L[better]
        norm[open_] = torch.where(hit & better, found, norm[open_])
        low = low.index_put((open_[~hit],), radius[~hit])
        if k == 0:
            open_ = open_[hit]
    return best, low


def _solver(optimiser: str, p: float, K: int) -> Callable:
    """`solve(x0, value_and_grad, ε, z, stop_at, callback) -> Ascent` of an optimiser's name."""
    if optimiser not in OPTIMISERS:
        raise VceError(f"optimiser {optimiser!r} is unknown; choose one of {', '.join(OPTIMISERS)}")
    if optimiser == "apgd":
        if p not in (1, 2):
            raise VceError(f"apgd projects onto l1 and l2 balls only, not p = {p:g}; choose afw-b for other norms")
        attack = apgd_l2 if p == 2 else apgd_l1
        return lambda x0, f, epsilon, z, stop_at, callback: attack(
            x0, f, epsilon, z, K, stop_at=stop_at, callback=callback
        )
    if optimiser == "fw":
        return lambda x0, f, epsilon, z, stop_at, callback: frank_wolfe(
            x0, f, oracle(epsilon, p), z, K, stop_at=stop_at, callback=callback
        )
    variant = optimiser[-1].upper()
    return lambda x0, f, epsilon, z, stop_at, callback: auto_frank_wolfe(
        x0, f, oracle(epsilon, p), z, K, variant, stop_at=stop_at, callback=callback
    )

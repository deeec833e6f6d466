"""Constrained ascent on an image: what adversarial training, the comparison's anchors and SVCE share.

Every optimiser maximises `value_and_grad(x, rows) -> (L, g)` per sample inside the intersection of an l_p ball around
x0 with the box [0, 1]^d, spends exactly K + 1 forward and backward passes, returns its best iterate, and lets samples
that have finished leave the batch at checkpoints. `rows` are the sample numbers in the working batch. Section numbers
are those of the specification of SVCE.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import VceError
from common.explain import ActiveSet, Objective

Callback = Callable[[dict], None]

MAX_PASSES = 100  # a backstop: each fourth pass halves the bracket
RHO = 0.75  # the share of increasing steps a window needs to keep its step size
TOP = 0.2  # l1-APGD: share of coordinates in the first steps
ALPHA = 0.75  # APGD: weight of the new step against the momentum


@dataclass(frozen=True)
class Ascent:
    """The best iterates x (N×C×H×W), their objective L (N), who diverged (N bool), gradient evaluations `steps` (N) and
    the `passes` that were run for them (N).

    A sample stops counting steps when it reaches `stop_at` or diverges; passes go on until it leaves the batch. A
    sample that diverged holds its last finite best iterate; one that was never finite holds x0 and L = −∞.
    """

    x: Tensor
    L: Tensor
    diverged: Tensor
    steps: Tensor
    passes: Tensor


def checkpoints(K: int) -> dict[int, int]:
    """When the step size is judged: {iterations done: length of the window that ends there} (§2.4).

    The first window is 22 % of K, each next one 3 % of K shorter, but no shorter than 6 %.
    """
    window, done, marks = max(22 * K // 100, 1), 0, {}
    while done + window <= K:
        done += window
        marks[done] = window
        window = max(window - max(3 * K // 100, 1), max(6 * K // 100, 1))
    return marks


def must_shrink(increases: Tensor, window: int, L_best: Tensor, L_last: Tensor, reduced: Tensor) -> Tensor:
    """The checkpoint decision per sample (§2.4): too few increases, or no gain since an unreduced checkpoint.

    `increases` counts the steps of the window that raised L; L_last is L_best at the previous checkpoint; `reduced`
    says whether that checkpoint shrank the step. All have shape N; the answer is boolean.
    """
    return (increases <= RHO * window) | (~reduced & (L_best <= L_last))


def per_row_radius(epsilon: float | Tensor, x: Tensor) -> Tensor:
    """The radius of each of the N samples of x, as a tensor of x's dtype; `VceError` unless all are positive."""
    epsilon = torch.as_tensor(epsilon, dtype=x.dtype, device=x.device).expand(len(x))
    if not (epsilon > 0).all():
        raise VceError(f"epsilon: a radius must be positive, not {epsilon.min().item():g}")
    return epsilon


def column(values: Tensor, x: Tensor) -> Tensor:
    """N values shaped to broadcast over the samples of x."""
    return values.view(-1, *[1] * (x.ndim - 1))


def blend(to: Tensor, source: Tensor, who: Tensor) -> None:
    """Copy the rows `who` of `source` into `to`, both finite: a 0/1 blend is exact and faster than a masked copy."""
    to.lerp_(source, column(who.to(to.dtype), to))


def unit(g: Tensor) -> Tensor:
    """g / ‖g‖₂ per sample; scaled first, so tiny and huge gradients keep their direction; a zero row stays zero."""
    top = g.flatten(1).abs().amax(1)
    g = g / column(top + (top == 0), g)
    norm = torch.linalg.vector_norm(g.flatten(1), dim=1)
    return g.div_(column(norm + (norm == 0), g))


def top_threshold(a: Tensor, weight: Tensor | None, budget: Tensor) -> Tensor:
    """The smallest τ ≥ 0 with Σ_i weight_i·[a_i > τ] ≤ budget, per row: a selection without a sort.

    `a` is N×d, non-negative, float32 or float64; `weight` N×d, non-negative, or None for ones; `budget` N×1, positive
    or zero. Returns N×1. Bit patterns of non-negative floats are ordered as the floats: bisection over them is exact.
    """
    bits, passes = (torch.int32, 31) if a.dtype == torch.float32 else (torch.int64, 63)
    hi = a.amax(1, keepdim=True).view(bits)
    lo = torch.zeros_like(hi)
    above = torch.empty_like(a)
    for _ in range(passes):
        middle = lo + (hi - lo) // 2
        torch.gt(a, middle.view(a.dtype), out=above)
        total = (above if weight is None else above.mul_(weight)).sum(1, keepdim=True)
        fits = total <= budget
        lo, hi = torch.where(fits, lo, middle + 1), torch.where(fits, middle, hi)
    return hi.view(a.dtype)


@torch.no_grad()
def project_l1(y: Tensor, x0: Tensor, epsilon: Tensor) -> Tensor:
    """The Euclidean projection of the displacement y onto ‖δ‖₁ ≤ ε, x0 + δ ∈ [0, 1]^d (§2.5).

    y and x0 are N×... of one shape, `epsilon` N radii. KKT: δ_i = sgn(y_i)·clip(|y_i| − λ, 0, γ_i) with γ_i the room
    towards sgn(y_i). The sum over i is decreasing and piecewise linear in λ ≥ 0: Newton's method lands on the root once
    it knows the linear piece; bisection takes over outside the bracket and on every fourth step.
    """
    sgn = y.flatten(1).sign()
    gamma = sgn.clamp_min(0).addcmul_(x0.flatten(1), sgn, value=-1).clamp_min_(0)
    a = y.flatten(1).abs()
    epsilon, tolerance = epsilon[:, None], 4 * torch.finfo(y.dtype).eps
    s, inner = torch.minimum(a, gamma), torch.empty_like(a)
    lam = lo = torch.zeros_like(epsilon)
    hi = a.amax(1, keepdim=True)
    settled = ~(s.sum(1, keepdim=True) > epsilon)
    for i in range(1, MAX_PASSES):
        if settled.all():
            break
        excess = _clip(a, lam, gamma, s).sum(1, keepdim=True) - epsilon
        slope = torch.lt(s, gamma, out=inner).mul_(s.sign()).sum(1, keepdim=True)
        newton = lam + excess / slope
        lo, hi = torch.where(excess > 0, lam, lo), torch.where(excess < 0, lam, hi)
        inside = (lo < newton) & (newton < hi) & (i % 4 > 0)
        new = torch.where(inside, newton, lo + (hi - lo) / 2)
        done = (excess.abs() <= tolerance * epsilon) | ((new == lam) & ~settled)
        settled = settled | done
        lam = torch.where(settled, lam, new)
    total = _clip(a, lam, gamma, s).sum(1, keepdim=True)
    # where |y| is far larger than ε, λ has too few digits to meet ε: stay inside
    return s.mul_((epsilon / total).clamp_max_(1)).mul_(sgn).view_as(y)


def _clip(a: Tensor, lam: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
    """clip(a − λ, 0, γ) into `out`."""
    torch.sub(a, lam, out=out).clamp_min_(0)
    return torch.minimum(out, gamma, out=out)


class Climb:
    """The state of N ascents in one batch: iterate, best iterate, checkpoint statistics, and who has finished."""

    def __init__(
        self,
        x0: Tensor,
        value_and_grad: Objective,
        stop_at: float | None = None,
        callback: Callback | None = None,
        first: int = 0,
    ):
        n, device = len(x0), x0.device
        self.x0, self.value_and_grad, self.stop_at, self.callback, self.i = x0, value_and_grad, stop_at, callback, first
        self._active = ActiveSet(n, device)
        self._out = Ascent(
            x0.clone(),
            x0.new_full((n,), -math.inf),
            torch.zeros(n, dtype=torch.bool, device=device),
            torch.zeros(n, dtype=torch.long, device=device),
            torch.zeros(n, dtype=torch.long, device=device),
        )
        self.x, self.g, self.x_best, self.g_best = x0, None, x0.clone(), torch.zeros_like(x0)
        self.L_best, self.L_last = self._out.L.clone(), None
        # an increase needs a predecessor: the first step of the run never counts as one
        self._L_previous = x0.new_full((n,), math.inf)
        self._increases, self._steps = torch.zeros_like(self._out.steps), self._out.steps.clone()
        self._passes = self._out.passes.clone()
        self._diverged, self._finished = self._out.diverged.clone(), self._out.diverged.clone()
        self._reduced = ~self._diverged

    @property
    def rows(self) -> Tensor:
        """The sample numbers of the working batch."""
        return self._active.rows

    def evaluate(self, x: Tensor) -> None:
        """One forward and backward pass at x (a fresh tensor the climb may overwrite); keeps the best iterate."""
        L, g = self.value_and_grad(x, self.rows)
        finite = L.isfinite() & g.flatten(1).abs().amax(1).isfinite()
        running = ~self._finished
        better = running & finite & L.gt(self.L_best)
        self.x, self.g = x, g.nan_to_num(0.0, 0.0, 0.0)
        blend(self.x_best, self.x, better)
        blend(self.g_best, self.g, better)
        self.L_best = torch.where(better, L, self.L_best)
        if self.L_last is None:
            self.L_last = self.L_best
        else:
            self._increases += L.gt(self._L_previous)
            self._L_previous = L
        self._steps += running
        self._passes += 1
        self._diverged |= running & ~finite
        self._finished |= self._diverged
        if self.stop_at is not None:
            self._finished |= self.L_best >= self.stop_at
        if self.callback is not None:
            self.callback({"i": self.i, "L": L, "L_best": self.L_best, "rows": self.rows})
        self.i += 1

    def checkpoint(self, window: int) -> Tensor:
        """Who shrinks the step; those samples also restart from their best iterate and its gradient (§2.4)."""
        shrink = must_shrink(self._increases, window, self.L_best, self.L_last, self._reduced)
        self._reduced, self.L_last, self._increases = shrink, self.L_best, torch.zeros_like(self._increases)
        self.restart(shrink)
        return shrink

    def restart(self, who: Tensor) -> None:
        """Put the samples `who` back on their best iterate."""
        blend(self.x, self.x_best, who)
        blend(self.g, self.g_best, who)

    def compact(self, *state: Tensor) -> tuple[Tensor, ...]:
        """Let finished samples leave the batch; returns the caller's own per-row tensors, compacted alike."""
        rows = self.rows
        keep = self._active.compact(self._finished)
        if keep is None:
            return state
        self._write(rows)
        for name in ("x0", "x", "g", "x_best", "g_best", "L_best", "L_last", "_L_previous", "_increases", "_steps"):
            setattr(self, name, getattr(self, name)[keep])
        for name in ("_passes", "_diverged", "_finished", "_reduced"):
            setattr(self, name, getattr(self, name)[keep])
        return tuple(tensor[keep] for tensor in state)

    def result(self) -> Ascent:
        """The answer for all N samples, in their order."""
        self._write(self.rows)
        return self._out

    def _write(self, rows: Tensor) -> None:
        self._out.x[rows], self._out.L[rows] = self.x_best, self.L_best
        self._out.diverged[rows], self._out.steps[rows] = self._diverged, self._steps
        self._out.passes[rows] = self._passes


def apgd_l2(
    x0: Tensor,
    value_and_grad: Objective,
    epsilon: float | Tensor,
    z: Tensor,
    K: int,
    *,
    stop_at: float | None = None,
    callback: Callback | None = None,
) -> Ascent:
    """Auto-PGD in the l2 ball (§2.5; Croce and Hein, ICML 2020).

    x0 is N×C×H×W in [0, 1], `epsilon` a radius or N radii, z a normal draw of x0's shape: the direction of the start.
    P scales to the ball and then clamps, so ‖x − x0‖₂ may end below ε. K + 1 passes.
    """

    def into_ball(delta: Tensor, eps: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return delta.mul_(column((eps / norm).clamp_max_(1), delta))

    return _apgd(x0, value_and_grad, epsilon, unit(z), K, unit, into_ball, stop_at, callback)


def apgd_linf(
    x0: Tensor,
    value_and_grad: Objective,
    epsilon: float | Tensor,
    z: Tensor,
    K: int,
    *,
    stop_at: float | None = None,
    callback: Callback | None = None,
) -> Ascent:
    """Auto-PGD in the linf ball (§2.5); arguments as in `apgd_l2`. Steps along sgn g; the start is ε·z/‖z‖∞."""

    def into_ball(delta: Tensor, eps: Tensor) -> Tensor:
        bound = column(eps, delta)
        return torch.minimum(torch.maximum(delta, -bound, out=delta), bound, out=delta)

    z = z / column(z.flatten(1).abs().amax(1), z)
    return _apgd(x0, value_and_grad, epsilon, z, K, torch.sign, into_ball, stop_at, callback)


def _apgd(
    x0: Tensor,
    value_and_grad: Objective,
    epsilon: float | Tensor,
    start: Tensor,
    K: int,
    direction: Callable[[Tensor], Tensor],
    into_ball: Callable[[Tensor, Tensor], Tensor],
    stop_at: float | None,
    callback: Callback | None,
) -> Ascent:
    """Auto-PGD in a norm given by its steepest unit `direction` of a gradient and its projection `into_ball`;
    `start` is the displacement, per unit of ε, that it starts from."""
    eps = per_row_radius(epsilon, x0)
    eta, windows = 2 * eps, checkpoints(K)

    def P(x: Tensor) -> Tensor:
        return into_ball(x.sub_(run.x0), eps).add_(run.x0).clamp_(0, 1)

    run = Climb(x0, value_and_grad, stop_at, callback)
    run.evaluate(P(x0 + column(eps, x0) * start))
    x_previous = run.x
    for i in range(K):
        alpha = ALPHA if i else 1.0
        target = P(direction(run.g).mul_(column(eta, run.g)).add_(run.x))
        x = P(target.mul_(alpha).add_(run.x, alpha=2 - 2 * alpha).sub_(x_previous, alpha=1 - alpha))
        x_previous = run.x
        run.evaluate(x)
        if i + 1 in windows:
            eta = torch.where(run.checkpoint(windows[i + 1]), eta / 2, eta)
            eta, eps, x_previous = run.compact(eta, eps, x_previous)
            if not len(run.rows):
                break
    return run.result()


def apgd_l1(
    x0: Tensor,
    value_and_grad: Objective,
    epsilon: float | Tensor,
    z: Tensor,
    K: int,
    *,
    multi_radius: bool = False,
    stop_at: float | None = None,
    callback: Callback | None = None,
) -> Ascent:
    """l1-APGD in the exact intersection of the l1 ball and the box (§2.5; Croce and Hein, ICML 2021).

    Arguments as in `apgd_l2`; z is projected to give the start. `multi_radius` spends the K + 1 passes on the radii 3ε,
    2ε, ε in shares of 30, 30 and 40 %, each stage starting at the projected best of the one before; only the last can
    reach `stop_at` or be returned. Raises `VceError` when K < 3 leaves a stage without a pass.
    """
    eps = per_row_radius(epsilon, x0)
    passes, window = K + 1, max(4 * K // 100, 1)
    if not multi_radius:
        return _l1_stage(x0, value_and_grad, eps, z, K, window, 0, stop_at, callback)
    if K < 3:
        raise VceError(f"K: the three radii need at least 3 iterations, not {K}")
    first = 0
    diverged, steps, done = torch.zeros(len(x0), dtype=torch.bool, device=x0.device), 0, 0
    for factor, last in ((3, 3 * passes // 10), (2, 6 * passes // 10), (1, passes)):
        stop = stop_at if last == passes else None
        stage = _l1_stage(x0, value_and_grad, factor * eps, z, last - first - 1, window, first, stop, callback)
        z, first = stage.x - x0, last
        diverged, steps, done = diverged | stage.diverged, steps + stage.steps, done + stage.passes
    return Ascent(stage.x, stage.L, diverged, steps, done)


def _l1_stage(
    x0: Tensor,
    value_and_grad: Objective,
    eps: Tensor,
    start: Tensor,
    K: int,
    window: int,
    first: int,
    stop_at: float | None,
    callback: Callback | None,
) -> Ascent:
    """K iterations at one radius, from the projected displacement `start`; `first` numbers the first pass."""
    d = x0[0].numel() if len(x0) else 1
    run = Climb(x0, value_and_grad, stop_at, callback, first)
    run.evaluate(x0 + project_l1(start, x0, eps))
    eta, top = eps, torch.full_like(eps, TOP if first == 0 else 1.0)
    support = torch.full_like(eps, float(d))
    if first:
        support = (run.x != x0).flatten(1).sum(1).to(eps.dtype)
        top = support / (1.5 * d)
    for i in range(K):
        delta = sparse_sign(run.g, top).mul_(column(eta, run.g)).add_(run.x).sub_(run.x0)
        run.evaluate(project_l1(delta, run.x0, eps).add_(run.x0))
        if (i + 1) % window == 0:
            new_support = (run.x_best != run.x0).flatten(1).sum(1).to(eps.dtype)
            sparser = new_support < 0.95 * support
            eta = torch.where(sparser, eps, torch.maximum(eta / 1.5, eps / 10))
            top, support = new_support / (1.5 * d), new_support
            run.restart(sparser)
            eta, top, support, eps = run.compact(eta, top, support, eps)
            if not len(run.rows):
                break
    return run.result()


def sparse_sign(g: Tensor, top: Tensor) -> Tensor:
    """sgn(g) on the `top` share (N, in [0, 1]) of largest |g_i|, at least one, ties included; ‖·‖₁ = 1 per sample."""
    flat = g.flatten(1)
    a = flat.abs()
    count = (top[:, None] * flat.shape[1]).floor().clamp_min(1)
    step = flat.sign().mul_(a >= top_threshold(a, None, count - 1))
    return step.div_(step.abs().sum(1, keepdim=True).clamp_min_(1)).view_as(g)

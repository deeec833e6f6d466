"""The linear maximisation oracle over an l_p ball and the box of images, solved without sorting (SVCE §2.3).

    lmo(w, x, ε, p) = argmax ⟨w, δ⟩   subject to   ‖δ‖_p ≤ ε  and  x + δ ∈ [0, 1]^d

Every coordinate moves with the sign of w, by at most γ_i, its distance to the wall of the box. For p > 1 the KKT
conditions leave one unknown (§2.3, steps 3 and 4). In units of the radius, y = s/ε, and with q = p/(p−1),

    y_i^p = min(c_i, u·b_i),     b_i = |w_i|^q,     c_i = (γ_i/ε)^p,     F(u) = Σ min(c_i, u·b_i) = 1.

F is increasing, concave and piecewise linear. A tangent of F therefore meets 1 at or before the root, which makes
Newton's method in u monotone and finite. A Newton step in (log u, log F), exact for power laws, is never shorter; the
solver takes it when the bracket allows and the tangent's when not. For p = 1 the problem is the fractional knapsack,
whose threshold `top_threshold` finds exactly.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from common.attacks import per_row_radius, top_threshold
from common.errors import VceError

TOLERANCE = {torch.float32: 5e-7, torch.float64: 1e-12}  # of F(u) = 1; the last tangent step refines it further
MAX_PASSES = 200  # a backstop: 4 to 7 passes are usual, about 30 the most seen on inputs built to be hard
LARGE_LOG = 1e32  # log u of "every coordinate at its wall"
RECENTRE = 40.0  # e^40·(smallest float32) is still far below the budget 1
STARVED = 1e-30  # a slope this small holds no digits of a float32 sum
POLISH = 1e-3  # the last tangent step corrects rounding only
BLOCK = 1 << 18  # values per block of rows: its temporaries stay in the cache
SAMPLE = 4096  # values per row of the strided sample that gives the starting point


@torch.no_grad()
def lmo(w: Tensor, x: Tensor, epsilon: float | Tensor, p: float) -> Tensor:
    """The maximiser δ of ⟨w, δ⟩ over ‖δ‖_p ≤ ε, x + δ ∈ [0, 1]^d, per sample (SVCE §2.3).

    `w` and `x` are N×... tensors of one shape and dtype, float32 or float64; x lies in [0, 1]. `epsilon` is a radius or
    N radii, all positive; 1 ≤ p < ∞. A positive factor on a row of w does not change the answer. A row of w that is
    zero, or a row that holds a NaN or an infinity, gives δ = 0 there. The data decide how many passes are needed, so
    each pass synchronises with the host. Raises `VceError` for ε ≤ 0 or p outside [1, ∞).
    """
    if not 1 <= p < math.inf:
        raise VceError(f"p: the norm's order must lie in [1, inf), not {p}")
    epsilon = per_row_radius(epsilon, w)[:, None]
    delta = torch.empty(w.shape, dtype=w.dtype, device=w.device)
    rows = max(1, BLOCK * len(w) // max(1, w.numel()))
    for first in range(0, len(w), rows):
        block = slice(first, first + rows)
        solve = _knapsack if p == 1 else _ball
        delta[block] = solve(w[block].flatten(1), x[block].flatten(1), epsilon[block], p).view_as(delta[block])
    return delta


def oracle(epsilon: float | Tensor, p: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The LMO with radius and norm bound: `lmo(w, x0, rows) -> δ`.

    `epsilon` is a radius or one radius per sample; `rows` are the sample numbers in the working batch, which pick it.
    """

    def bound(w: Tensor, x0: Tensor, rows: Tensor) -> Tensor:
        return lmo(w, x0, epsilon[rows] if isinstance(epsilon, Tensor) and epsilon.ndim else epsilon, p)

    return bound


def _room(w: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """sgn w, the room γ in its direction, a = |w| / max |w|, and that maximum per row, finite only where w is.

    w = 0 where γ = 0 (§2.3 step 1); and γ = 0 where a is 0 or underflows to it.
    """
    sgn = w.sign()
    gamma = sgn.clamp_min(0).addcmul_(x, sgn, value=-1).clamp_min_(0)
    a = w.abs().mul_(gamma.sign())
    top = a.amax(1, keepdim=True)
    a.div_(top + (top == 0))
    return sgn, gamma.mul_(a.sign()), a, top[:, 0]


def _knapsack(w: Tensor, x: Tensor, epsilon: Tensor, p: float) -> Tensor:
    """p = 1: the largest |w_i| fill up to γ_i until Σs = ε; equal |w_i| at the threshold share what is left."""
    sgn, gamma, a, top = _room(w, x)
    tau = top_threshold(a, gamma, epsilon)
    s = gamma * (a > tau)
    at_tau = gamma.mul_(a == tau)
    tied = at_tau.sum(1, keepdim=True)
    rest = (epsilon - s.sum(1, keepdim=True)).clamp_min_(0)
    share = torch.where(tied > rest, rest / tied, 1.0)
    s.addcmul_(at_tau, share).mul_(sgn)
    return _zero_bad_rows(s, top + s.sum(1))


def _ball(w: Tensor, x: Tensor, epsilon: Tensor, p: float) -> Tensor:
    """1 < p < ∞: find u, then s_i = ε·min(γ_i/ε, (u·b_i)^{1/p}) (§2.3 steps 2 to 5)."""
    sgn, gamma, a, top = _room(w, x)
    torch.minimum(gamma, epsilon, out=gamma)  # implied by the ball; keeps c ≤ 1
    c = _power(gamma / epsilon, p)
    # where a = 0, c = 0 makes b irrelevant; 1 avoids the slow paths of log 0 and of an underflowing exp
    log_b = a.add_(torch.eq(a, 0, out=torch.empty_like(a))).log_().mul_(p / (p - 1))
    total = c.sum(1, dtype=torch.float64)
    d = c.shape[1]
    settled = (total <= 1) | ~total.isfinite()
    if settled.all():
        return _zero_bad_rows(gamma.mul_(sgn), top + total)
    lower = torch.full_like(total, -math.log(d))  # F(1/d) ≤ 1 because b ≤ 1
    v = torch.where(settled, LARGE_LOG, lower)
    stride = d // SAMPLE
    if stride > 1:
        part = slice(None, None, stride)
        budget = len(range(0, d, stride)) / d
        v, _, _ = _root(log_b[:, part].contiguous(), c[:, part].contiguous(), v, lower, settled, budget, 1e-2)
    v, centre, y = _root(log_b, c, v, lower, settled, 1.0, TOLERANCE[w.dtype])
    scale = ((v - centre) / p).exp_().to(w.dtype)[:, None] * epsilon
    torch.add(log_b, centre.to(w.dtype)[:, None], out=y).mul_(1 / p).exp_().mul_(scale)
    torch.minimum(y, gamma, out=y).mul_(sgn)
    return _zero_bad_rows(y, top + total)


def _root(
    log_b: Tensor, c: Tensor, v: Tensor, lower: Tensor, settled: Tensor, budget: float, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve F(e^v) = `budget` per row, from the start v and the lower bound; `settled` rows keep their v.

    Returns v, the centre (the v at which b was last exponentiated) and a buffer of c's shape.
    """
    lo, hi = lower, torch.full_like(v, math.inf)
    bound = lower  # the best root of a tangent so far: at or before the root of F, but for rounding
    settled, centre = settled.clone(), v
    b = torch.add(log_b, centre.to(c.dtype)[:, None]).exp_()
    m, unclipped = torch.empty_like(c), torch.empty_like(c)
    for _ in range(MAX_PASSES):
        far = (v - centre).abs() > RECENTRE
        if far.any():
            centre = torch.where(far, v, centre)
            torch.add(log_b, centre.to(c.dtype)[:, None], out=b).exp_()
        torch.mul(b, (v - centre).exp_().to(c.dtype)[:, None], out=m)
        F = torch.minimum(m, c, out=m).sum(1).double()
        A = torch.lt(m, c, out=unclipped).mul_(m).sum(1).double()  # u·F'(u)
        gap = budget - F
        tangent = v + torch.log1p(gap / A)
        log_log = v + (torch.log(budget / F) * F / A).clamp_max_(RECENTRE)
        lo = torch.where(gap > 0, torch.maximum(lo, v), lo)
        hi = torch.where(gap < 0, torch.minimum(hi, v), hi)
        starved = (gap > tolerance * budget) & (A < STARVED) & ~settled
        if starved.any():  # nothing unclipped, or all of it underflowed: go to where its largest term would do
            largest = torch.where(torch.lt(m, c), log_b, -math.inf).amax(1).double()
            tangent = torch.where(starved, torch.log(gap / c.shape[1]) - largest, tangent)
        bound = torch.where(tangent.isfinite(), torch.maximum(bound, tangent), bound)
        new = torch.where((lo < bound) & (bound < hi), bound, (lo + hi) / 2)
        new = torch.where(~starved & (bound <= log_log) & (log_log < hi), log_log, new)
        reached = (gap.abs() <= tolerance * budget) | (starved & tangent.isinf())
        new = torch.where(reached, torch.where(gap.abs() < POLISH * A, tangent, v), new)
        pinned = hi - lo <= torch.finfo(c.dtype).eps
        v = torch.where(settled, v, torch.where(pinned & ~reached, lo, new))
        settled |= reached | pinned | ~F.isfinite()
        if settled.all():
            break
    return v, centre, m


def _power(y: Tensor, p: float) -> Tensor:
    """y^p; the paper's p = 1.5 by a square root, five times faster than the general power."""
    return y.sqrt().mul_(y) if p == 1.5 else y.pow(p)


def _zero_bad_rows(s: Tensor, witness: Tensor) -> Tensor:
    """Zero the rows whose witness is not finite."""
    bad = ~witness.isfinite()
    if bad.any():
        s[bad] = 0
    return s

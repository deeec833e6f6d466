"""Auto-Frank-Wolfe: sparse visual counterfactuals in image space (SVCE §2.4).

    x_VCE ∈ argmax log p(k | x)   subject to   ‖x − x0‖_p ≤ ε,  x ∈ [0, 1]^d

Frank-Wolfe needs no projection: it moves towards the best point of the set for the linearised objective, which `lmo.py`
finds exactly for every p ≥ 1. The arguments of both optimisers:

- x0 is N×C×H×W in [0, 1];
- `value_and_grad(x, rows) -> (L, g)` is the objective to maximise, per sample;
- `lmo(w, x0, rows) -> δ` maximises ⟨w, δ⟩ over the set around x0 (`lmo.oracle` binds radii and p);
- z is a normal draw of x0's shape: the direction of the random extreme point that starts the ascent;
- `stop_at` lets a sample finish at this value of L; `callback(dict)` sees `i`, `L`, `L_best` and `rows` at each pass.

Either spends K + 1 forward and backward passes and returns the best iterate.

Deviation: the temperature that both releases at some time doubled where the gradient vanishes is left out. It worked
around a linear oracle that fails on tiny gradients; ours is free of scale.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from common.attacks import Ascent, Callback, Climb, checkpoints, column
from common.errors import VceError
from common.explain import Objective

LMO = Callable[[Tensor, Tensor, Tensor], Tensor]

# variant: (M₀, factor at a checkpoint, γ_i of M and i)
VARIANTS = {
    "A": (0.75, 0.5, lambda M, i: M),
    "B": (2.0, 0.75, lambda M, i: M / (2 + i**0.5)),
}


def auto_frank_wolfe(
    x0: Tensor,
    value_and_grad: Objective,
    lmo: LMO,
    z: Tensor,
    K: int,
    variant: str,
    *,
    stop_at: float | None = None,
    callback: Callback | None = None,
) -> Ascent:
    """AFW with the adaptive step of the first (A: γ = M) or the second release (B: γ_i = M/(2+√i)) (SVCE §2.4).

    At the checkpoints, samples that stall shrink M and restart from their best iterate. Raises `VceError` for another
    variant.
    """
    if variant not in VARIANTS:
        raise VceError(f"variant: Auto-Frank-Wolfe has {' and '.join(VARIANTS)}, not {variant}")
    M0, shrink, gamma = VARIANTS[variant]
    M, windows = x0.new_full((len(x0),), M0), checkpoints(K)
    run = Climb(x0, value_and_grad, stop_at, callback)
    run.evaluate(lmo(z, x0, run.rows).add_(x0).clamp_(0, 1))  # a random extreme point
    for i in range(K):
        v = lmo(run.g, run.x0, run.rows).add_(run.x0)
        run.evaluate(torch.lerp(run.x, v, column(gamma(M, i), v)).clamp_(0, 1))
        if i + 1 in windows:
            M = torch.where(run.checkpoint(windows[i + 1]), shrink * M, M)
            (M,) = run.compact(M)
            if not len(run.rows):
                break
    return run.result()


def frank_wolfe(
    x0: Tensor,
    value_and_grad: Objective,
    lmo: LMO,
    z: Tensor,
    K: int,
    *,
    stop_at: float | None = None,
    callback: Callback | None = None,
) -> Ascent:
    """Plain Frank-Wolfe, γ_i = 2/(i+2): the ablation of the adaptive step (SVCE §2.5)."""
    windows = checkpoints(K)
    run = Climb(x0, value_and_grad, stop_at, callback)
    run.evaluate(lmo(z, x0, run.rows).add_(x0).clamp_(0, 1))
    for i in range(K):
        v = lmo(run.g, run.x0, run.rows).add_(run.x0)
        run.evaluate(torch.lerp(run.x, v, 2 / (i + 2)).clamp_(0, 1))
        if i + 1 in windows:
            run.compact()
            if not len(run.rows):
                break
    return run.result()

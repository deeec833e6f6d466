"""Clarity's search in the latent space of a VAE, and what its gradient is worth (Clarity spec §2.2, §2.3).

    J(z) = −log p̄(t|z) + λ‖z − z_0‖²,     z_{k+1} = Adam(z_k, ∇J; lr),     stop at the first k with p̄(t|z_k) ≥ τ

from z_0 = μ(x); the counterfactual is g(z_k). Nothing here knows of images: an objective maps latents to log p̄(t|z)
and its gradient.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from common.attacks import unit
from common.explain import ActiveSet, Objective

Callback = Callable[[dict], None]

CHECK_EVERY = 16  # steps between looks at who has finished
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # Adam's defaults


@dataclass(frozen=True)
class LatentPath:
    """For N samples and S thresholds: z N×S×d, the first iterate with p̄(t|z) ≥ τ_s, else the last one; log_p N×S, its
    log p̄(t|z); steps N×S, gradient evaluations until then; diverged N×S, where the
    search met a value that is no number or left the prior before τ_s, and z is the last iterate before.
    """

    z: Tensor
    log_p: Tensor
    steps: Tensor
    diverged: Tensor


def latent_search(
    z0: Tensor,
    objective: Objective,
    taus: Sequence[float],
    *,
    lam: float = 0.0,
    steps: int = 300,
    lr: float = 0.05,
    ascend: Literal["log p", "p"] = "log p",
    optimiser: Literal["adam", "gradient"] = "adam",
    prior_radius: float = math.inf,
    callback: Callback | None = None,
) -> LatentPath:
    """Ascend log p̄ (or p̄, whose gradient p̄·∇log p̄ vanishes on the plateau) from z0 N×d, past every τ in `taus`.

    One run serves all thresholds, since each stops on the same path. `objective(z, rows)` gives M log p̄(t|z) and their
    M×d gradients; a term of its own beside log p̄ may be in the gradient (REVISE). `prior_radius`: a latent with a
    larger norm has left the prior, and the search ends before it.
    """
    n, s = len(z0), len(taus)
    threshold = torch.tensor(taus, dtype=z0.dtype).log()
    path = LatentPath(
        z=z0[:, None].repeat(1, s, 1),
        log_p=torch.full((n, s), -torch.inf, dtype=z0.dtype),
        steps=torch.zeros(n, s, dtype=torch.long),
        diverged=torch.zeros(n, s, dtype=torch.bool),
    )
    active, searching = ActiveSet(n), torch.ones(n, s, dtype=torch.bool)
    origin, z, travelled = z0, z0.clone(), torch.zeros(n, dtype=z0.dtype)
    m, v = torch.zeros_like(z), torch.zeros_like(z)
    for k in range(steps + 1):
        rows = active.rows
        log_p, g = objective(z, rows)
        sound = log_p.isfinite() & g.isfinite().all(1) & (z.norm(dim=1) <= prior_radius)
        taking = searching[rows] & sound[:, None]
        path.z[rows] = torch.where(taking[..., None], z[:, None], path.z[rows])
        path.log_p[rows] = torch.where(taking, log_p[:, None], path.log_p[rows])
        path.steps[rows] += searching[rows]
        path.diverged[rows] |= searching[rows] & ~sound[:, None]
        searching[rows] &= sound[:, None] & (log_p[:, None] < threshold)
        if callback:
            callback({"k": k, "rows": rows, "z": z, "log_p": log_p, "travelled": travelled})
        finished = ~searching[rows].any(1)
        if k == steps:
            break
        if k % CHECK_EVERY == 0:
            keep = active.compact(finished)
            if keep is not None:
                if not len(keep):
                    break
                origin, z, travelled, m, v = origin[keep], z[keep], travelled[keep], m[keep], v[keep]
                log_p, g, finished = log_p[keep], g[keep], finished[keep]
        if ascend == "p":
            g = g * log_p.exp()[:, None]
        g = g - 2 * lam * (z - origin)
        if optimiser == "adam":
            g, m, v = adam_step(g, m, v, k)
        move = torch.where(finished[:, None], 0.0, lr * g)
        z, travelled = z + move, travelled + move.norm(dim=1)
    return path


def adam_step(g: Tensor, m: Tensor, v: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Adam's ascent direction of its step k (from 0) along the gradient g, and its new moments m and v."""
    m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g.square()
    return (m / (1 - BETA1 ** (k + 1))) / ((v / (1 - BETA2 ** (k + 1))).sqrt() + EPS), m, v


def follow_direction(
    z0: Tensor, direction: Callable[[Tensor], Tensor], radii: Sequence[float], step: float
) -> tuple[Tensor, Tensor]:
    """What the gradient is worth at matched distance (Q6): z ← z + step·g/‖g‖; after r/step steps the displacement,
    rescaled to length r, gives the latent at radius r.

    `direction` maps N×d latents to N×d gradients; `radii` ascend and are multiples of `step`. Returns latents N×S×d and
    N×S gradient evaluations. A sample without any displacement, its gradient 0 or no number from the start, stays at
    z0.
    """
    marks = {round(radius / step): radius for radius in radii}
    z, found = z0, []
    for k in range(1, max(marks) + 1):
        g = direction(z)
        z = z + torch.where(g.isfinite().all(1, keepdim=True), step * unit(g), 0.0)
        if k in marks:
            found.append(z0 + marks[k] * unit(z - z0))
    return torch.stack(found, 1), torch.tensor(list(marks)).expand(len(z0), -1)


def straight(z0: Tensor, towards: Tensor, radii: Sequence[float]) -> Tensor:
    """z0 + r·(towards − z0)/‖towards − z0‖ for every r: N×S×d. With class means of the latents it is the class-mean
    shift, the control that needs no classifier."""
    return z0[:, None] + torch.tensor(radii, dtype=z0.dtype)[:, None] * unit(towards - z0)[:, None]

"""Other ways to move a latent until a label is seen: linear directions, conditional ones, the gradient at the latent,
and an optimisation per image (contrastive spec §5, B1 to B3)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import VceError
from papers.contrastive.labels import Labels
from papers.contrastive.method import Generator
from papers.contrastive.systems import System

EXTREME = 0.02  # of the scored latents at either end, what a direction is fitted to (InterFaceGAN's default)
FIT = 4000  # latents that are scored
GRID = 16  # steps along a direction, up to the mean distance of a latent from the mean latent
STEPS, RATE, LAM = 40, 0.15, 0.05  # of the optimisation per image; λ is that of the shift
CHUNK = 256


def normals(w: Tensor, logits: Tensor) -> Tensor:
    """m×d unit normals of linear SVMs that part the latents with the highest of N×m logits from those with the lowest.
    Raises VceError when a label does not vary."""
    from sklearn.svm import LinearSVC

    n = max(int(EXTREME * len(w)), 2)
    found = []
    for k, logit in enumerate(logits.T):
        if logit.min() == logit.max():
            raise VceError(f"label {k} is the same in all {len(w)} images: no direction tells its values apart")
        order = logit.argsort()
        ends = torch.cat([order[:n], order[-n:]])
        machine = LinearSVC(random_state=0, max_iter=20_000).fit(w[ends].double().numpy(), np.arange(2 * n) >= n)
        found.append(torch.from_numpy(machine.coef_[0]).float())
    return F.normalize(torch.stack(found), dim=1)


def conditional(directions: Tensor) -> Tensor:
    """m×d directions, each without its projection on the span of all others, of unit length."""
    found = []
    for k in range(len(directions)):
        others = torch.cat([directions[:k], directions[k + 1 :]]).double()
        n = directions[k].double()
        found.append(n - others.T @ torch.linalg.solve(others @ others.T, others @ n))
    return F.normalize(torch.stack(found), dim=1).float()


def latent_gradient(w: Tensor, k: int, G: Generator, f: Labels) -> Tensor:
    """N×d unit directions in which the probability of label k rises fastest (Latent Shift)."""
    parts = []
    for part in w.split(CHUNK):
        z = part.clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(f(G(z))[:, k].sum(), z)  # σ is monotone: the same direction
        parts.append(gradient)
    return F.normalize(torch.cat(parts), dim=1)


@torch.no_grad()
def first_hit(w: Tensor, directions: Tensor, k: int, present: Tensor, system: System) -> Tensor:
    """N×d shifts along N×d `directions` of label k, towards or away as its `present` values ask: the first of `GRID`
    steps at which it is seen to be the opposite, none where it never is."""
    reach = (w - w.mean(0)).norm(dim=1).mean()
    steps = torch.linspace(0, 1, GRID + 1)[1:] * reach
    shifts = (1 - 2.0 * present)[:, None] * directions
    z = (w[:, None] + steps[:, None] * shifts[:, None]).flatten(0, 1)
    seen = torch.cat([system.asked(system.G(part))[:, k] > 0 for part in z.split(CHUNK)]).view(len(w), GRID)
    hit = seen != (present[:, None] == 1)
    return (steps[hit.int().argmax(1)] * hit.any(1))[:, None] * shifts


def optimised(w: Tensor, k: int, present: Tensor, system: System) -> Tensor:
    """N×d shifts, each by Adam on the loss of its own image: BCE of the opposite of label k + λ‖δ‖ (Wachter)."""
    parts = []
    for part, values in zip(w.split(CHUNK), present.split(CHUNK), strict=True):
        delta = torch.full_like(part, 1e-3).requires_grad_()
        adam = torch.optim.Adam([delta], RATE)
        with torch.enable_grad():
            for _ in range(STEPS):
                logit = system.asked(system.G(part + delta))[:, k]
                missed = F.binary_cross_entropy_with_logits(logit, 1.0 - values, reduction="sum")
                (delta.grad,) = torch.autograd.grad(missed + LAM * delta.norm(dim=1).sum(), delta)
                adam.step()
        parts.append(delta.detach())
    return torch.cat(parts)


def moves(w: Tensor, present: Tensor, system: System, generator: torch.Generator) -> dict[str, dict[int, Tensor]]:
    """The shifts N×d of every baseline for every asked label, by their names; `present` N×m."""
    scored = system.sample(FIT, generator)
    with torch.no_grad():
        logits = torch.cat([system.asked(system.G(part)) for part in scored.split(CHUNK)])
    linear = normals(scored, logits)
    held = conditional(linear)
    found: dict[str, dict[int, Tensor]] = {"linear": {}, "conditional": {}, "latent-shift": {}, "optimised": {}}
    for k in range(system.m):
        values = present[:, k]
        for name, directions in (
            ("linear", linear[k].expand(len(w), -1)),
            ("conditional", held[k].expand(len(w), -1)),
            ("latent-shift", latent_gradient(w, k, system.G, system.asked)),
        ):
            found[name][k] = first_hit(w, directions, k, values, system)
        found["optimised"][k] = optimised(w, k, values, system)
    return found


# forward and backward passes of the labels per image
PASSES = {
    "linear": (GRID, 0), "conditional": (GRID, 0), "latent-shift": (GRID + 1, 1), "optimised": (STEPS, STEPS),
}  # fmt: skip

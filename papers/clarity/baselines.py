"""What Clarity is compared with on the same pairs, with the settings on record (Clarity spec §3).

Each keeps the contract. REVISE and latent ascent search the same latent space through a pixel classifier; Schut et al.
change pixels one by one, without a generative model.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from common.explain import ActiveSet, CounterfactualBatch, Streams, finish, log_confidence
from papers.clarity.explain import decoded, explain
from papers.clarity.method import adam_step
from papers.clarity.systems import System

PIXEL_STEP = 0.2  # Schut et al.: a fifth of the range
CHANGES = 5  # per pixel at most


def revise_terms(
    system: System, images: Tensor, target: Tensor, lam: float
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """`(z, rows) -> (log p_t(g(z)), ‖x − g(z)‖₁, gradient)` of −[NLL(f(g(z)), t) + λ‖x − g(z)‖₁], the norm summed over
    pixels."""

    def terms(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            decoded = system.vae.decode(z)
            log_p = system.ensemble(decoded).gather(1, target[rows, None])[:, 0]
            distance = (decoded - images[rows]).abs().flatten(1).sum(1)
            (g,) = torch.autograd.grad((log_p - lam * distance).sum(), z)
        return log_p.detach(), distance.detach(), g

    return terms


def revise_plain(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: System,
    rng: Streams | None = None,
    strengths: Sequence[float] = (0.5,),
    callback: Callable[[dict], None] | None = None,
    lam: float = 1.0,
    steps: int = 500,
    lr: float = 1e-3,
) -> CounterfactualBatch:
    """REVISE as the DeDUCE repository runs it: plain gradient steps, λ = 1, stop at p_t ≥ .5. There 50,000 steps of
    1e-5; here 500 of 1e-3, the same way in fewer steps (its found pairs hardly differ between 1e-5 and 1e-3)."""
    terms = revise_terms(classifier, images, target, lam)

    def objective(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        log_p, _, g = terms(z, rows)
        return log_p, g

    return explain(
        images, source, target, classifier=classifier, strengths=strengths, callback=callback,
        steps=steps, lr=lr, optimiser="gradient", objective=objective, bounded=False,
    )  # fmt: skip


def revise_adam(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: System,
    rng: Streams | None = None,
    strengths: Sequence[float] = (0.5,),
    callback: Callable[[dict], None] | None = None,
    lam: float = 0.5,
    steps: int = 1000,
    lr: float = 0.1,
) -> CounterfactualBatch:
    """REVISE as CARLA runs it: Adam .1, λ = .5, all 1,000 steps; of the iterates with p_t ≥ the strength that of least
    loss NLL + λ‖x − g(z)‖₁, the last iterate where there is none, diverged where that is no number."""
    z0 = classifier.vae.latents(images)[0]
    n, everyone = len(z0), torch.arange(len(z0))
    terms = revise_terms(classifier, images, target, lam)
    threshold = torch.tensor(strengths).log()
    z, m, v = z0.clone(), torch.zeros_like(z0), torch.zeros_like(z0)
    best = z0[:, None].repeat(1, len(strengths), 1)
    least, sound = torch.full((n, len(strengths)), torch.inf), torch.ones(n, 1, dtype=torch.bool)
    for k in range(steps + 1):
        log_p, distance, g = terms(z, everyone)
        loss = lam * distance - log_p
        sound &= (log_p.isfinite() & g.isfinite().all(1))[:, None]
        better = sound & (log_p[:, None] >= threshold) & (loss[:, None] < least)
        least = torch.where(better, loss[:, None], least)
        best = torch.where((better | sound & least.isinf())[..., None], z[:, None], best)
        if callback:
            callback({"k": k, "z": z})
        step, m, v = adam_step(g, m, v, k)
        z = z + lr * step
    evaluations = torch.full((n, len(strengths)), steps + 1)
    return decoded(images, source, target, z0, best, strengths, classifier, evaluations, least.isinf() & ~sound)


# Dombrowski et al. 2022, their VAE variant: as REVISE without a distance term
latent_ascent = partial(explain, lr=5e-3, steps=1000, bounded=False)


def schut(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: System,
    rng: Streams | None = None,
    strengths: Sequence[float] = (0.99,),
    callback: Callable[[dict], None] | None = None,
    iterations: int = 1000,
) -> CounterfactualBatch:
    """Schut et al. 2021: change the one pixel of largest |∂ log p̄_t/∂x| by a fifth of the range, no pixel more than
    five times, until p̄_t reaches each strength. A pixel that cannot move on inside [0, 1] is passed over; a sample
    without any stops. They allow 5,000 iterations."""
    n, s = len(images), len(strengths)
    threshold = torch.tensor(strengths).log()
    x = images.flatten(1).clone()
    changes, active = torch.zeros_like(x, dtype=torch.long), ActiveSet(n)
    found = images[:, None].repeat(1, s, 1, 1, 1)
    searching, steps = torch.ones(n, s, dtype=torch.bool), torch.zeros(n, s, dtype=torch.long)
    objective = log_confidence(classifier, target)
    for i in range(iterations + 1):
        rows = active.rows
        log_p, g = objective(x.view(-1, *images.shape[1:]), rows)
        found[rows] = torch.where(searching[rows][..., None, None, None], x.view(-1, 1, *images.shape[1:]), found[rows])
        steps[rows] += searching[rows]
        g = g.flatten(1)
        can_move = (changes < CHANGES) & torch.where(g > 0, x < 1, x > 0) & (g != 0)
        searching[rows] &= (log_p[:, None] < threshold) & can_move.any(1, keepdim=True)
        finished = ~searching[rows].any(1)
        if callback:
            callback({"i": i, "rows": rows})
        if i % 16 == 0:
            keep = active.compact(finished)
            if keep is not None:
                if not len(keep):
                    break
                x, changes, g, can_move, finished = x[keep], changes[keep], g[keep], can_move[keep], finished[keep]
        pixel = (g.abs() * can_move).argmax(1, keepdim=True)
        move = PIXEL_STEP * g.gather(1, pixel).sign() * ~finished[:, None]
        x = x.scatter(1, pixel, (x.gather(1, pixel) + move).clamp(0, 1))
        changes = changes.scatter_add(1, pixel, (~finished[:, None]).long())
    return finish(images, found, target, classifier=classifier, strengths=strengths, steps=steps, passes=(steps, steps))

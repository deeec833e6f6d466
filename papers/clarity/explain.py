"""Clarity's contract function, and the directions that are compared at matched latent distance."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from common.errors import VceError
from common.explain import CounterfactualBatch, Objective, Streams, log_confidence
from papers.clarity.method import follow_direction, latent_search, straight
from papers.clarity.systems import System


def explain(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: System,
    rng: Streams | None = None,
    strengths: Sequence[float] = (0.5, 0.9, 0.99),
    callback: Callable[[dict], None] | None = None,
    lam: float = 0.0,
    steps: int = 300,
    lr: float = 0.05,
    ascend: str = "log p",
    optimiser: str = "adam",
    objective: Objective | None = None,
    bounded: bool = True,
) -> CounterfactualBatch:
    """Clarity (§2.2): from μ(x) ascend the log-probability of the target until it reaches each τ in `strengths`.

    Each image of the path is the decoded first iterate with p̄(t|z) ≥ τ, or the last one when there is none within
    `steps`. `confidence` is that of the latent, before a round trip through decoder and encoder. `classifier` is the
    system that is explained: Clarity explains its own latent classifier, not another one. `objective` replaces
    log p̄ and its gradient; `bounded` False lets the search leave the prior, as the baselines do.
    A sample whose target is its source is skipped; one whose latent leaves the prior (‖z‖ above the χ 99.9 % quantile),
    or for which a member answers with no number, diverged, and holds the last iterate before. The search draws nothing
    from `rng`. Raises VceError for a τ outside (0, 1) or a classifier that is no latent system.
    """
    system = _latent_system(classifier)
    for tau in strengths:
        if not 0 < tau < 1:
            raise VceError(f"strengths: τ = {tau:g} is no confidence between 0 and 1")
    z0 = system.vae.latents(images)[0]
    path = latent_search(
        z0,
        objective or log_confidence(system.log_probabilities, target),
        strengths,
        lam=lam,
        steps=steps,
        lr=lr,
        ascend=ascend,
        optimiser=optimiser,
        prior_radius=system.vae.prior_radius if bounded else math.inf,
        callback=callback,
    )
    return decoded(images, source, target, z0, path.z, strengths, system, path.steps, path.diverged)


def directions(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: System,
    rng: Streams | None = None,
    strengths: Sequence[float],
    callback: Callable[[dict], None] | None = None,
) -> CounterfactualBatch:
    """Q6 (§2.3): where the gradient of log p̄ leads at the latent distances `strengths`, in steps of a tenth of the
    least of them. A latent outside of the prior keeps its place at that distance and is marked `diverged`."""
    system = _latent_system(classifier)
    z0 = system.vae.latents(images)[0]
    objective, rows = log_confidence(system.log_probabilities, target), torch.arange(len(images))

    def direction(z: Tensor) -> Tensor:
        if callback:
            callback({"z": z})
        return objective(z, rows)[1]

    z, steps = follow_direction(z0, direction, strengths, min(strengths) / 10)
    return decoded(images, source, target, z0, z, strengths, system, steps)


def class_mean_shift(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: System,
    class_means: Tensor,
    rng: Streams | None = None,
    strengths: Sequence[float],
    callback: Callable[[dict], None] | None = None,
) -> CounterfactualBatch:
    """The control without a classifier: from μ(x) straight to the mean latent of the target class, at the latent
    distances `strengths`; `class_means` is K×d. `classifier` only reads the result."""
    system = _latent_system(classifier)
    z0 = system.vae.latents(images)[0]
    z = straight(z0, class_means[target], strengths)
    return decoded(images, source, target, z0, z, strengths, system)


def decoded(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    z0: Tensor,
    z: Tensor,
    strengths: Sequence[float],
    system: System,
    steps: Tensor | None = None,
    diverged: Tensor | None = None,
) -> CounterfactualBatch:
    """The batch of paths z N×S×d that a latent method found from z0: images, confidence of the latents, status, and
    the reconstruction g(z0) as reference. `diverged` N×S is what the search says; by default, a latent outside of the
    prior."""
    n, s = z.shape[:2]
    flat = z.flatten(0, 1)
    with torch.no_grad():
        decoded = torch.cat([system.vae.decode(part) for part in flat.split(256)]).view(n, s, *images.shape[1:])
        reference = torch.cat([system.vae.decode(part) for part in z0.split(256)])
        log_p = torch.cat([system.log_probabilities(part) for part in flat.split(256)]).view(n, s, -1)
    if diverged is None:
        diverged = z.norm(dim=2) > system.vae.prior_radius
    failed = diverged | log_p.isnan().any(2)
    same = (source == target)[:, None].expand(n, s)
    found = torch.where(same[..., None, None, None], images[:, None], decoded)
    status = np.where(log_p.argmax(2).numpy() == target[:, None].numpy(), "ok", "not_flipped")
    status = np.where(same.numpy(), "skipped", np.where(failed.numpy(), "diverged", status))
    passes = torch.zeros(n, s, dtype=torch.long) if steps is None else steps
    return CounterfactualBatch(
        images=found,
        strengths=tuple(strengths),
        log_confidence=log_p.gather(2, target[:, None, None].expand(n, s, 1))[..., 0].nan_to_num(nan=-torch.inf),
        distance=(found - images[:, None]).abs().flatten(2).mean(2),
        status=status,
        steps=passes,
        forward=passes,
        backward=passes,
        latent_shift=z - z0[:, None],
        reference=reference,
    )


def _latent_system(classifier: torch.nn.Module) -> System:
    if not isinstance(classifier, System):
        raise VceError(
            "--classifier: clarity explains its own latent classifier, no other; leave it out, or give a file of this"
            " pipeline, work/SCALE/clarity/systems/WORLD-SEED.safetensors"
        )
    return classifier

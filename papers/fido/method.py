"""FIDO: which pixels does a classifier need, when an in-filler stands in for the others (FIDO spec §2).

    SSR   min_θ E_z[ −s(c | φ(x, z)) ] + λ Σ_u θ_u          the smallest region that supports class c
    SDR   min_θ E_z[ +s(c | φ(x, z)) ] + λ Σ_u (1 − θ_u)    the smallest region whose deletion destroys it

with z_u ~ Bernoulli(θ_u), 1 keeps a pixel; φ(x, z) = z⊙x + (1−z)⊙x̂ and x̂ ~ p_G(· | kept pixels); s = log p/(1−p).
Equations 4 and 5 as printed have the penalty on the wrong side (spec §2.2); this is what the released code minimises.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import VceError
from common.explain import Streams
from common.generators.infill import Infill

CLAMP = 1e-6  # of probabilities inside logarithms, in float32
Objective = Literal["ssr", "sdr"]
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """The paper's constants at 224 px (spec §2.4). `grid`: cells of the mask per side; `masks` per step; `lam` is λ,
    `tau` the temperature of the Concrete relaxation; λ rises linearly over the first `warm_up` steps; `tv` weighs the
    summed squared differences of neighbouring drop probabilities. BBMP has one mask, no τ, no warm-up, but `observed`:
    what of the mask counts as kept for an in-filler."""

    grid: int = 56
    steps: int = 300
    masks: int = 8
    lam: float = 1e-3
    tau: float = 0.1
    learning_rate: float = 0.05
    warm_up: int = 30
    tv: float = 0.0
    observed: float = 1.0


@dataclass(frozen=True)
class Mask:
    """`theta` N×H×W, the keep probabilities, in [0, 1]; `bad_fills` N, how many in-fills were no numbers and were left
    out; of how many `fills` per image, in so many `steps`."""

    theta: Tensor
    bad_fills: Tensor
    fills: int
    steps: int


def log_odds(logits: Tensor, c: Tensor) -> Tensor:
    """s(c) = log p_c − log(1 − p_c) of B×K logits and B classes: ℓ_c − logsumexp over the others, finite at p = 1."""
    others = logits.scatter(1, c[:, None], -torch.inf).logsumexp(1)
    return logits.gather(1, c[:, None])[:, 0] - others


def upsample(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """N×1×g×g to N×H×W, bilinear, the corner cells on the corner pixels (as PyTorch 0.3 did)."""
    return F.interpolate(cells, size, mode="bilinear", align_corners=True)[:, 0]


def concrete(p: Tensor, u: Tensor, tau: float) -> Tensor:
    """Relaxed Bernoulli(p) in (0, 1) from uniform u: σ((logit p + logit u)/τ)."""
    return ((p.clamp(CLAMP, 1 - CLAMP).logit() + u.clamp(CLAMP, 1 - CLAMP).logit()) / tau).sigmoid()


def fido(
    x: Tensor, score: Score, G: Infill, objective: Objective, settings: Settings, rng: Streams, callback=None
) -> Mask:
    """Keep probabilities θ of N×C×H×W images, all optimised together, each with a mask of its own (spec §2.3, §2.7).

    `score` maps N×M×C×H×W mixed images to their N×M log-odds. Raises VceError for an image smaller than the grid.
    """
    size, sign = _size(x, settings.grid), {"ssr": -1.0, "sdr": 1.0}[objective]
    a = torch.zeros(len(x), 1, settings.grid, settings.grid, requires_grad=True)  # logit of the drop probability
    adam = torch.optim.Adam([a], fused=True)
    bad = torch.zeros(len(x), dtype=torch.long)
    x_hat = G(x, x.new_zeros(len(x), 1, *size), rng) if G.constant else None
    for t in range(settings.steps):
        draw = _at(rng, t)
        p = upsample(a.sigmoid(), size)  # probabilities are upsampled, not logits
        z = 1 - concrete(p[:, None], draw.uniform((settings.masks, *size), "mask"), settings.tau)
        filled = G(x, z.detach().round(), draw) if x_hat is None else x_hat  # hard masks, and no gradient through G
        finite = filled.isfinite().flatten(2).all(2).expand(z.shape[:2])
        s = score(_mixed(z, x, torch.where(_over(finite), filled, 0.0)))
        expected = torch.where(finite, s, 0.0).sum(1) / finite.sum(1).clamp_min(1)
        penalty = ((1 - p) if objective == "ssr" else p).sum((1, 2))
        loss = sign * expected + settings.lam * min(1, t / max(1, settings.warm_up)) * penalty
        if settings.tv:
            loss = loss + settings.tv * (p.diff(dim=1).square().sum((1, 2)) + p.diff(dim=2).square().sum((1, 2)))
        _step(adam, loss, settings.learning_rate * (1 - t / settings.steps))
        bad += (~finite).sum(1)
        if callback:
            callback({"step": t, "theta": (1 - p).detach()})
    theta = upsample(-a.detach(), size).sigmoid()  # of the map, logits are upsampled
    return Mask(theta, bad, settings.steps * settings.masks, settings.steps)


def bbmp(
    x: Tensor, score: Score, G: Infill, objective: Objective, settings: Settings, rng: Streams, callback=None
) -> Mask:
    """The meaningful perturbation as the paper adapts it (spec §2.6): one continuous mask per image, from 1, clipped to
    [0, 1]; no noise, no warm-up. An in-filler sees the pixels whose mask is at least `observed`."""
    size, sign = _size(x, settings.grid), {"ssr": -1.0, "sdr": 1.0}[objective]
    cells = torch.ones(len(x), 1, settings.grid, settings.grid, requires_grad=True)
    adam = torch.optim.Adam([cells], fused=True)
    bad = torch.zeros(len(x), dtype=torch.long)
    x_hat = G(x, x.new_zeros(len(x), 1, *size), rng) if G.constant else None
    for t in range(settings.steps):
        m = upsample(cells, size)[:, None]
        filled = G(x, (m.detach() > settings.observed - CLAMP).to(x), _at(rng, t)) if x_hat is None else x_hat
        finite = filled.isfinite().flatten(2).all(2)
        s = score(_mixed(m, x, torch.where(_over(finite), filled, 0.0)))
        penalty = (m if objective == "ssr" else 1 - m).sum((1, 2, 3))
        loss = sign * torch.where(finite, s, 0.0)[:, 0] + settings.lam * (t > 0) * penalty
        _step(adam, loss, settings.learning_rate * (1 - t / settings.steps))
        cells.data.clamp_(0, 1)
        bad += (~finite).sum(1)
        if callback:
            callback({"step": t, "theta": m[:, 0].detach()})
    return Mask(upsample(cells.detach(), size), bad, settings.steps, settings.steps)


def _size(x: Tensor, grid: int) -> tuple[int, int]:
    height, width = x.shape[2:]
    if grid > min(height, width):
        raise VceError(f"grid: {grid} cells per side do not fit an image of {height}×{width} pixels; lower it")
    return height, width


def _at(rng: Streams, t: int) -> Streams:
    """The streams of step t."""
    return Streams(rng.seed, tuple(f"{image}|{t}" for image in rng.image_ids), rng.targets)


def _over(values: Tensor) -> Tensor:
    """N×M values as factors of N×M×C×H×W images."""
    return values[..., None, None, None]


def _mixed(z: Tensor, x: Tensor, x_hat: Tensor) -> Tensor:
    """φ = z⊙x + (1−z)⊙x̂: N×M×C×H×W from N×M×H×W, N×C×H×W and N×M×C×H×W."""
    return torch.lerp(x_hat, x[:, None], z[:, :, None])


def _step(adam: torch.optim.Adam, loss: Tensor, learning_rate: float) -> None:
    """One step down the sum of N losses: Adam is per parameter, so the images stay independent."""
    adam.param_groups[0]["lr"] = learning_rate
    adam.zero_grad()
    loss.sum().backward()
    adam.step()

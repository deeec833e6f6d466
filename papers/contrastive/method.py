"""Contrastive counterfactuals in a pretrained generator's latent space (spec §2.2 to §2.5).

    x^cf = G( w + α·S_θ(w, c) ),     c ∈ {−1, 0, +1}^m:  +1 make label k present, −1 absent, 0 do not care

S is trained to reach the targets of f under a frozen G and a frozen f, and to move as little as it can:

    L = (1/|Ω|) Σ_{(b,k)∈Ω} BCE( f_k(G(w_b + δ_b)), (c_bk + 1)/2 ) + λ · (1/B) Σ_b ‖δ_b‖₂,    δ = S(w, c), Ω = {c ≠ 0}
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Generator = Callable[[Tensor], Tensor]  # N×d latents to N×C×H×W images in [0, 1]
LabelLogits = Callable[[Tensor], Tensor]  # images to N×m logits
Regime = Literal["free", "clamp_others", "clamp_nondesc"]


class ShiftPredictor(nn.Module):
    """S: N×d latents and N×m conditions to N×d shifts; no unit norm, no scaling of the output."""

    def __init__(self, d: int, m: int, hidden: int = 1024):
        super().__init__()
        self.d, self.m, self.hidden = d, m, hidden
        self.layers = nn.Sequential(
            nn.Linear(d + m, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.1),
            nn.Linear(hidden, d),
        )  # fmt: skip

    def forward(self, w: Tensor, c: Tensor) -> Tensor:
        return self.layers(torch.cat([w, c], 1))


def shift_loss(S: ShiftPredictor, w: Tensor, c: Tensor, G: Generator, f: LabelLogits, lam: float) -> Tensor:
    """The loss of N latents and their conditions: labels that nobody asked for have no part in it; the norm is plain,
    not squared."""
    delta = S(w, c)
    asked = c != 0
    reached = F.binary_cross_entropy_with_logits(f(G(w + delta))[asked], (c[asked] + 1) / 2)
    return reached + lam * delta.norm(dim=1).mean()


def random_conditions(n: int, m: int, generator: torch.Generator, sparse: bool = False) -> Tensor:
    """N×m independent entries, uniform in {−1, 0, +1}, whatever the labels are; anew where all of them are 0.

    `sparse` first draws how many of a row's m are asked for, 1 to m: single flips are then as common as full
    conditions. Independent entries make them 2m/3^m of the rows.
    """
    if sparse:
        asked = torch.rand(n, m, generator=generator).argsort(1) < torch.randint(1, m + 1, (n, 1), generator=generator)
        return asked * (torch.randint(0, 2, (n, m), generator=generator) * 2.0 - 1)
    c = torch.zeros(n, m)
    while not c.any():
        c = torch.randint(-1, 2, (n, m), generator=generator).float()
    return c


def condition(
    present: Tensor, k: int, value: Tensor | int, regime: Regime, descendants: tuple[int, ...] = ()
) -> Tensor:
    """The condition do(X_k ← value), one value or N, for N×m present labels (0 or 1): N×m of −1, 0, +1 (spec §2.5).

    `free` asks for nothing else: the cheapest move may drag anything along. `clamp_others` holds every other label
    where it is: a direct effect. `clamp_nondesc` holds all but the `descendants` of k.
    """
    c = 2.0 * present - 1
    if regime == "free":
        c = torch.zeros_like(c)
    elif regime == "clamp_nondesc":
        c[:, list(descendants)] = 0
    c[:, k] = 2.0 * value - 1
    return c


def counterfactual(w: Tensor, c: Tensor, S: ShiftPredictor, G: Generator, alpha: float = 1.0) -> Tensor:
    """G(w + α·S(w, c)), N×C×H×W; α other than 1 is ours."""
    return G(w + alpha * S(w, c))

"""Training of the shift predictor S (contrastive spec §2.3): G and f stay as they are."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from common.errors import VceError
from papers.contrastive.method import Generator, LabelLogits, ShiftPredictor, random_conditions, shift_loss


@dataclass(frozen=True)
class Recipe:
    """How S is trained. `lam` is λ, in units of the latent space. A batch is `batch_size` different latents or, with a
    `neighbourhood`, one latent with that much normal noise, as released. `sparse`: how conditions are drawn."""

    steps: int
    batch_size: int = 32
    lam: float = 0.05
    hidden: int = 512
    learning_rate: float = 1e-3
    neighbourhood: float | None = None
    sparse: bool = False


def train_shift(
    G: Generator,
    f: LabelLogits,
    d: int,
    m: int,
    recipe: Recipe,
    seed: int,
    progress: Callable[[dict], None] | None = None,
) -> ShiftPredictor:
    """Fit S for standard normal latents of size d and m labels: Adam, one-cycle rate; same seed, same bits.

    Returns it in evaluation mode, where its dropout is off, its parameters frozen. Raises VceError when the loss stops
    being finite.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)  # of the weights and of dropout
        S = ShiftPredictor(d, m, recipe.hidden)
        generator = torch.Generator().manual_seed(seed)
        adam = torch.optim.Adam(S.parameters(), recipe.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, recipe.learning_rate, total_steps=recipe.steps)
        for step in range(recipe.steps):
            w = torch.randn(recipe.batch_size, d, generator=generator)
            if recipe.neighbourhood is not None:
                w = w[:1] + recipe.neighbourhood * w
            c = random_conditions(len(w), m, generator, recipe.sparse)
            loss = shift_loss(S, w, c, G, f, recipe.lam)
            adam.zero_grad()
            loss.backward(inputs=list(S.parameters()))  # nothing gathers in G and f
            adam.step()
            schedule.step()
            if not math.isfinite(loss.item()):
                raise VceError(f"training diverged in step {step + 1}: the loss is not finite; lower `learning_rate`")
            if progress:
                progress({"step": step + 1, "steps": recipe.steps, "loss": loss.item()})
    return S.eval().requires_grad_(False)

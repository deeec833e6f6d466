"""Training of small classifiers: standard, noise-and-blur augmented, adversarial in one norm or several; and
temperature calibration."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.attacks import apgd_l1, unit
from common.errors import VceError

NORMS = ("l1", "l2", "linf")


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained.

    `adversary` gives its radius in image units for each norm of the threat (`l1`, `l2`, `linf`); none trains plainly,
    several by E-AT. `steps` are the adversary's gradient steps per batch. `start` names the classifier of the same
    world and seed whose weights are fine-tuned. `augment` adds noise and blur.
    """

    architecture: str
    epochs: int
    adversary: dict[str, float] = field(default_factory=dict)
    steps: int = 2
    start: str | None = None
    augment: bool = False
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    seed: int,
    progress: Callable[[dict], None] | None = None,
) -> None:
    """Fit `model` in place: AdamW, one-cycle rate, cross-entropy on (perturbed) batches; batch-norm in eval mode while
    attacking.

    With several norms each batch draws one with a weight of 1 − the running robust training accuracy in it, equal at
    the start (E-AT, SVCE spec §2.6). Raises VceError when the loss stops being finite.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = list(recipe.adversary)
    correct, seen = torch.zeros(len(norms)), torch.zeros(len(norms))
    batches = -(-len(images) // recipe.batch_size)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=recipe.epochs * batches)
    for epoch in range(recipe.epochs):
        total = torch.zeros(())
        for rows in torch.randperm(len(images), generator=generator).split(recipe.batch_size):
            x, y = images[rows], labels[rows]
            if recipe.augment:
                x = noise_and_blur(x, generator)
            if norms:
                chosen = choose_norm(correct, seen, generator)
                norm = norms[chosen]
                model.eval()
                x = x + attack(model, x, y, norm, recipe.adversary[norm], recipe.steps, generator)
            model.train()
            optimiser.zero_grad()
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            if norms:
                correct[chosen] += (logits.argmax(1) == y).sum()
                seen[chosen] += len(y)
            optimiser.step()
            schedule.step()
            total += loss.detach() * len(rows)
        mean = (total / len(images)).item()
        # the last step of an epoch is not in its loss
        if not (math.isfinite(mean) and all(value.isfinite().all() for value in model.parameters())):
            raise VceError(f"training diverged in epoch {epoch + 1}: the loss is not finite; lower `learning_rate`")
        if progress:
            progress({"epoch": epoch + 1, "epochs": recipe.epochs, "loss": mean})
    model.eval()


def choose_norm(correct: Tensor, seen: Tensor, generator: torch.Generator) -> int:
    """The norm of the next batch, drawn with weights 1 − correct/seen (E-AT); a norm not seen yet weighs as one that
    always fails."""
    if len(seen) == 1:
        return 0
    weight = 1 - correct / seen.clamp_min(1)
    return int(torch.multinomial(weight.clamp_min(1e-3), 1, generator=generator))


def attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: str,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Untargeted attack of training: perturbations N×C×H×W of norm ≤ `epsilon` that keep the image in [0, 1].

    l2 and linf: PGD from a random start inside the ball, `steps` steps of 2ε/steps along the steepest direction. l1:
    l1-APGD, whose steps are sparse. Raises VceError for another norm.
    """
    if norm not in NORMS:
        raise VceError(f"adversary: norm {norm!r} is unknown; choose from {', '.join(NORMS)}")
    if norm == "l1":
        z = torch.randn(x.shape, generator=generator)
        return apgd_l1(x, cross_entropy_gradient(model, y), epsilon, z, steps).x - x
    if norm == "l2":
        delta = unit(torch.randn(x.shape, generator=generator))
        delta *= epsilon * torch.rand(len(x), 1, 1, 1, generator=generator)
    else:
        delta = epsilon * (2 * torch.rand(x.shape, generator=generator) - 1)
    delta = (x + delta).clamp(0, 1) - x
    gradient = cross_entropy_gradient(model, y)
    everyone = torch.arange(len(x))
    for _ in range(steps):
        _, g = gradient(x + delta, everyone)
        delta = delta + (unit(g) if norm == "l2" else g.sign()) * (2 * epsilon / steps)
        if norm == "l2":
            delta *= (epsilon / delta.flatten(1).norm(dim=1).clamp_min(1e-12)).clamp(max=1).view(-1, 1, 1, 1)
        else:
            delta = delta.clamp(-epsilon, epsilon)
        delta = (x + delta).clamp(0, 1) - x
    return delta


def cross_entropy_gradient(model: nn.Module, y: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`(x, rows) -> (N losses, N×C×H×W gradients)` of the cross-entropy against y[rows], for the optimisers of
    `common.attacks`."""

    def value_and_grad(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(model(x), y[rows], reduction="none")
        (g,) = torch.autograd.grad(loss.sum(), x)
        return loss.detach(), g

    return value_and_grad


def noise_and_blur(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image gets Gaussian noise of its own σ ≤ .08 and is mixed with its 3×3 blur by its own share."""
    sigma, share = torch.rand(2, len(x), 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (x + share * (blurred - x) + 0.08 * sigma * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def fit_temperature(logits: Tensor, labels: Tensor, bins: int = 20) -> float:
    """The temperature of least expected calibration error over log T ∈ linspace(−3, 1, 2000) (SVCE spec §2.1)."""
    temperatures = torch.linspace(-3, 1, 2000).exp()
    confidence, prediction = (logits[None] / temperatures[:, None, None]).softmax(2).max(2)
    correct = (prediction == labels).float()
    bin_of = (confidence * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(len(temperatures), bins).scatter_add_(1, bin_of, confidence - correct)
    return temperatures[(gap.abs().sum(1) / len(labels)).argmin()].item()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 256) -> float:
    """Share of images whose arg-max is the label."""
    hits = [
        (model(x).argmax(1) == y).sum() for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    ]
    return (torch.stack(hits).sum() / len(labels)).item()

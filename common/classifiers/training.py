"""Training of small classifiers: standard, noise-and-blur augmented, l2-adversarial; and temperature calibration."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import VceError


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained. `epsilon` is the l2 radius of the adversary in image units (0: none), `steps` its
    gradient steps per batch; `augment` adds noise and blur."""

    architecture: str
    epochs: int
    epsilon: float = 0.0
    steps: int = 2
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

    Raises VceError when the loss stops being finite.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = -(-len(images) // recipe.batch_size)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=recipe.epochs * batches)
    for epoch in range(recipe.epochs):
        total = torch.zeros(())
        for rows in torch.randperm(len(images), generator=generator).split(recipe.batch_size):
            x, y = images[rows], labels[rows]
            if recipe.augment:
                x = noise_and_blur(x, generator)
            if recipe.epsilon:
                model.eval()
                x = x + l2_attack(model, x, y, recipe.epsilon, recipe.steps, generator)
            model.train()
            optimiser.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.detach() * len(rows)
        mean = (total / len(images)).item()
        if not math.isfinite(mean):
            raise VceError(f"training diverged in epoch {epoch + 1}: the loss is not finite; lower `learning_rate`")
        if progress:
            progress({"epoch": epoch + 1, "epochs": recipe.epochs, "loss": mean})
    model.eval()


def l2_attack(
    model: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int, generator: torch.Generator | None = None
) -> Tensor:
    """Untargeted l2-PGD: perturbations N×C×H×W of norm ≤ `epsilon` that keep the image in [0, 1].

    Random start inside the ball (at the centre without a generator), `steps` normalised gradient steps of 2ε/steps.
    """
    delta = torch.zeros_like(x)
    if generator is not None:
        delta = torch.randn(x.shape, generator=generator)
        delta *= epsilon * torch.rand(len(x), 1, 1, 1, generator=generator) / _norm(delta)
    for _ in range(steps):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y, reduction="sum"), delta)
        delta = delta.detach() + gradient * (2 * epsilon / steps / _norm(gradient))
        delta *= (epsilon / _norm(delta)).clamp(max=1)
        delta = (x + delta).clamp(0, 1) - x
    return delta


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


def robust_accuracy(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, steps: int = 20) -> float:
    """Accuracy under l2-PGD of radius `epsilon`, from the image itself."""
    return accuracy(model, images + l2_attack(model, images, labels, epsilon, steps), labels)


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)

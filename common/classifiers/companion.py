"""A classifier with its companions: soft-max, DUQ and direct-error-prediction heads on one backbone, trained jointly.

    DUQ   K_c(x) = exp(−d_c),  d_c = mean_m (W_c z − e_c)² / (2σ²),  e_c = m_c / N_c      (van Amersfoort et al. 2020)
          BCE(K, one-hot) + λ_gp (‖∇_x Σ_c K_c‖₂ − 1)²;  N, m: running means over batches, rate 1 − γ
    DEP   g(x) predicts the soft-max head's own loss s:  Σ max(0, ξ − sign(s_i − s_j)(ŝ_i − ŝ_j)) + ½ SmoothL1(ŝ, s),
          ξ = min(|s_i − s_j|, 1), on features that get no gradient; half of a batch is noised, or s hardly varies

(DISC spec §2.5.) Low d or low ŝ says "near what I was trained on". The soft-max head is what is explained; whether the
paper explains it or the DUQ model is unknown.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import VceError
from common.tensors import not_a, read_tensors, write_tensors

WIDTHS = (10, 20, 20, 40, 40, 40)
STRIDES = (1, 2, 1, 2, 1, 2)


@dataclass(frozen=True)
class Recipe:
    """How the three heads are trained: Adam, one-cycle rate. `embedding` is DUQ's m, `sigma` its length scale, `gamma`
    its running mean, `penalty` λ_gp, taken every second step; `noise` the largest σ of the noise that DEP sees."""

    epochs: int
    batch_size: int = 100
    learning_rate: float = 2e-3
    embedding: int = 32
    sigma: float = 0.3
    gamma: float = 0.99
    penalty: float = 0.1
    noise: float = 0.3


class Companion(nn.Module):
    """Maps N×C×H×W images to N×K logits of its soft-max head, divided by its temperature; `image_shape` and
    `class_names` as every classifier.

    `blocks` are six convolutions, `neck` the features z, N×64, that soft-max and DUQ read; DEP reads the means of all
    blocks.
    """

    def __init__(self, image_shape: tuple[int, int, int], class_names: Sequence[str], embedding: int, sigma: float):
        super().__init__()
        self.image_shape, self.class_names, self.sigma = tuple(image_shape), tuple(class_names), sigma
        classes, inner, blocks = len(class_names), image_shape[0], []
        for width, stride in zip(WIDTHS, STRIDES, strict=True):
            blocks.append(nn.Sequential(nn.Conv2d(inner, width, 3, stride, 1), nn.GroupNorm(5, width), nn.ReLU()))
            inner = width
        self.blocks = nn.ModuleList(blocks)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.neck = nn.Sequential(nn.Linear(4 * inner, 64), nn.ReLU())
        self.softmax = nn.Linear(64, classes)
        self.W = nn.Parameter(torch.randn(classes, embedding, 64) * (2 / 64) ** 0.5)
        self.error = nn.Sequential(nn.Linear(sum(WIDTHS), 32), nn.ReLU(), nn.Linear(32, 1), nn.Softplus())
        self.register_buffer("N", torch.full((classes,), 12.0))
        self.register_buffer("m", 12.0 * 0.05 * torch.randn(classes, embedding))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.softmax(self._features(self._activations(images))) / self.temperature

    def read(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits N×K before the temperature, features z N×64, and the means of all blocks N×170, in one pass."""
        activations = self._activations(images)
        z = self._features(activations)
        return self.softmax(z), z, block_means(activations)

    def _activations(self, images: Tensor) -> list[Tensor]:
        return list(itertools.accumulate(self.blocks, lambda h, block: block(h), initial=images))[1:]

    def _features(self, activations: list[Tensor]) -> Tensor:
        return self.neck(self.pool(activations[-1]))

    def embed(self, z: Tensor) -> Tensor:
        """W_c z: N×K×m."""
        return torch.einsum("kmp,np->nkm", self.W, z)

    def distances(self, z: Tensor) -> Tensor:
        """d_c, N×K: −log K_c, which keeps a gradient where K_c has none."""
        centroids = self.m / self.N[:, None]
        return (self.embed(z) - centroids).square().mean(2) / (2 * self.sigma**2)

    def predicted_error(self, means: Tensor) -> Tensor:
        """ŝ, N values ≥ 0."""
        return self.error(means)[:, 0]


def save_companion(companion: Companion, path: Path, facts: dict) -> None:
    """Write it atomically; `facts` (recipe, accuracies) are kept as JSON metadata."""
    header = {"image_shape": companion.image_shape, "class_names": companion.class_names, "facts": facts}
    write_tensors(path, "companion", companion.state_dict(), {**header, "sigma": companion.sigma})


def load_companion(path: Path | str) -> Companion:
    """The companion in a file of `save_companion`, in eval mode, frozen. Raises VceError when it is damaged or is not
    one of ours."""
    header, state = read_tensors(path, "companion")
    try:
        shape, embedding = tuple(header["image_shape"]), state["W"].shape[1]
        companion = Companion(shape, header["class_names"], embedding, header["sigma"])
        companion.load_state_dict(state, strict=True)
    except (KeyError, RuntimeError) as error:
        raise not_a("companion", path, "its tensors are not those of its shape") from error
    return companion.eval().requires_grad_(False)


def block_means(activations: list[Tensor]) -> Tensor:
    """The means over places of all blocks, side by side."""
    return torch.cat([h.mean((2, 3)) for h in activations], 1)


@dataclass(frozen=True)
class NearAnyCentroid:
    """Manifold consistency by DUQ without a label: min_c d_c, near some class (spec §2.5)."""

    companion: Companion
    layers: tuple[str, ...] = ("neck",)

    def __call__(self, activations: list[Tensor]) -> Tensor:
        return self.companion.distances(activations[0]).min(1).values


@dataclass(frozen=True)
class PredictedError:
    """Manifold consistency by direct error prediction: ŝ."""

    companion: Companion
    layers: tuple[str, ...] = tuple(f"blocks.{k}" for k in range(len(WIDTHS)))

    def __call__(self, activations: list[Tensor]) -> Tensor:
        return self.companion.predicted_error(block_means(activations))


def kernel_cross_entropy(distances: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy of K = exp(−d), N×K, against one-hot targets, from the distances themselves:
    −log K = d, −log(1 − K) = −log(1 − exp(−d))."""
    d = distances.clamp_min(1e-6)
    return (target * d - (1 - target) * (-torch.expm1(-d)).log()).mean()


def gradient_penalty(kernel_sum: Tensor, images: Tensor) -> Tensor:
    """mean (‖∇_x Σ_c K_c‖₂ − 1)², two-sided, with a graph for the second gradient. `kernel_sum` is N, `images` N×C×H×W
    that require a gradient."""
    (g,) = torch.autograd.grad(kernel_sum.sum(), images, create_graph=True)
    # the root has no gradient at 0
    return ((g.flatten(1).square().sum(1) + 1e-12).sqrt() - 1).square().mean()


def ranking_loss(predicted: Tensor, loss: Tensor) -> Tensor:
    """Mean over all pairs of max(0, ξ − sign(s_i − s_j)(ŝ_i − ŝ_j)), ξ = min(|s_i − s_j|, 1), plus ½ SmoothL1(ŝ, s)."""
    i, j = torch.combinations(torch.arange(len(loss))).T
    gap = loss[i] - loss[j]
    ranked = (gap.abs().clamp(max=1) - gap.sign() * (predicted[i] - predicted[j])).clamp(min=0).mean()
    return ranked + 0.5 * F.smooth_l1_loss(predicted, loss)


def train_companion(
    images: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    recipe: Recipe,
    seed: int,
    progress: Callable[[dict], None] | None = None,
) -> Companion:
    """Fit all three heads to N×C×H×W images in [0, 1] and N labels; same seed, same bits. Returns it in eval mode,
    frozen. Raises VceError when the loss stops being finite."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        companion = Companion(tuple(images.shape[1:]), class_names, recipe.embedding, recipe.sigma)
    generator, classes = torch.Generator().manual_seed(seed), len(class_names)
    batches = -(-len(images) // recipe.batch_size)
    optimiser = torch.optim.Adam(companion.parameters(), recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=recipe.epochs * batches)
    step = 0
    for epoch in range(recipe.epochs):
        total = torch.zeros(())
        for rows in torch.randperm(len(images), generator=generator).split(recipe.batch_size):
            x, y = images[rows], labels[rows]
            target = F.one_hot(y, classes).to(x.dtype)
            penalised = step % 2 == 0 and recipe.penalty > 0
            x = x.clone().requires_grad_(penalised)
            logits, z, _ = companion.read(x)
            distances = companion.distances(z)
            loss = F.cross_entropy(logits, y) + kernel_cross_entropy(distances, target)
            if penalised:
                loss = loss + recipe.penalty * gradient_penalty((-distances).exp().sum(1), x)
            loss = loss + _error_loss(companion, x.detach(), y, recipe.noise, generator)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            _update_centroids(companion, x.detach(), target, recipe.gamma)
            total += loss.detach() * len(rows)
            step += 1
        mean = (total / len(images)).item()
        if not math.isfinite(mean):
            raise VceError(f"training diverged in epoch {epoch + 1}: the loss is not finite; lower `learning_rate`")
        if progress:
            progress({"epoch": epoch + 1, "epochs": recipe.epochs, "loss": mean})
    return companion.eval().requires_grad_(False)


def _error_loss(companion: Companion, x: Tensor, y: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """DEP on the batch, every second image with noise of its own σ, so that losses have spread; no gradient reaches the
    backbone."""
    sigma = noise * torch.rand(len(x), 1, 1, 1, generator=generator) * (torch.arange(len(x)) % 2).view(-1, 1, 1, 1)
    with torch.no_grad():
        noised = (x + sigma * torch.randn(x.shape, generator=generator)).clamp(0, 1)
        logits, _, means = companion.read(noised)
        loss = F.cross_entropy(logits, y, reduction="none")
    return ranking_loss(companion.predicted_error(means), loss)


@torch.no_grad()
def _update_centroids(companion: Companion, x: Tensor, target: Tensor, gamma: float) -> None:
    """N_c ← γN_c + (1 − γ)n_c,  m_c ← γm_c + (1 − γ) Σ_{i∈c} W_c z_i."""
    _, z, _ = companion.read(x)
    sums = torch.einsum("nkm,nk->km", companion.embed(z), target)
    companion.N.mul_(gamma).add_((1 - gamma) * target.sum(0))
    companion.m.mul_(gamma).add_((1 - gamma) * sums)

"""A small diffusion model of images: its noise predictor, its score at any noise level, its training, its file.

Outside, images are N×C×H×W in [0, 1]; inside, y = 2x − 1. The variance-preserving (VP) forward process of Ho et al.
(NeurIPS 2020) is x_t = √ᾱ_t·y + √(1−ᾱ_t)·ε with the cosine schedule of 1000 steps (Nichol and Dhariwal, ICML 2021); one
network predicts ε at every t. The same network is a score model of x + σz in image space: dividing x_t by √ᾱ_t gives
y + 2σz where ᾱ/(1−ᾱ) = 1/(2σ)², and Tweedie's formula turns the denoised image into ∇log p_σ.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import VceError
from common.tensors import not_a, read_tensors, write_tensors

TIMESTEPS = 1000
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5)  # the noise levels of the held-out facts, in image units


@dataclass(frozen=True)
class Recipe:
    """How a diffusion model is trained; `channels` are the widths at 1/2 and 1/4 of the image's resolution."""

    epochs: int
    channels: tuple[int, ...] = (32, 48)
    batch_size: int = 16
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4


class UNet(nn.Module):
    """`diffusers.UNet2DModel` on 2×2 blocks of pixels, a quarter of the work (0.44 M parameters).

    Maps x_t (N×C×H×W) and t (N, may be fractional) to the predicted noise. H and W must be divisible by 4.
    """

    def __init__(self, image_shape: tuple[int, int, int], channels: tuple[int, ...]):
        from diffusers import UNet2DModel

        super().__init__()
        C, H, W = image_shape
        self.body = UNet2DModel(
            sample_size=(H // 2, W // 2),
            in_channels=4 * C,
            out_channels=4 * C,
            block_out_channels=channels,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            layers_per_block=1,
            norm_num_groups=8,
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return F.pixel_shuffle(self.body(F.pixel_unshuffle(x_t, 2), t).sample, 2)


class ScoreModel(nn.Module):
    """A noise predictor with its schedule. `network(x_t, t)` maps N×C×H×W and N timesteps in [0, 999] to a correction.

    The correction is relative to data that are N(mean, std²) per pixel, whose best prediction is known (the
    preconditioning of Karras et al., NeurIPS 2022): a network of zeros already denoises towards the mean image. `mean`
    is C×H×W and `std` a number, both of y.
    """

    def __init__(self, network: nn.Module, mean: Tensor, std: float | Tensor):
        from diffusers import DDPMScheduler

        super().__init__()
        self.network, self.image_shape = network, tuple(mean.shape)
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", torch.as_tensor(std).clone())
        betas = DDPMScheduler(TIMESTEPS, beta_schedule="squaredcos_cap_v2").betas.double()
        alpha_bar = (1 - betas).cumprod(0)
        # −log SNR, which increases with t
        self.register_buffer("noisiness", (1 - alpha_bar).log() - alpha_bar.log(), persistent=False)

    def alpha_bar(self, t: Tensor) -> Tensor:
        """ᾱ at N timesteps, by linear interpolation of the log-SNR between whole ones."""
        knots = torch.arange(TIMESTEPS, dtype=torch.double, device=t.device)
        return torch.sigmoid(-_interpolate(t.double(), knots, self.noisiness)).to(t.dtype)

    def timestep(self, sigma: Tensor) -> Tensor:
        """The fractional t with ᾱ/(1−ᾱ) = 1/(2σ)² for N noise levels σ of image space; beyond the schedule its end."""
        knots = torch.arange(TIMESTEPS, dtype=torch.double, device=sigma.device)
        return _interpolate(2 * (2 * sigma.double()).log(), self.noisiness, knots).to(sigma.dtype)

    def predict_noise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """ε̂ in VP space: x_t is N×C×H×W, t holds N timesteps, which may be fractional."""
        alpha_bar = self.alpha_bar(t).view(-1, 1, 1, 1)
        signal, variance = alpha_bar * self.std**2, alpha_bar * self.std**2 + 1 - alpha_bar
        gaussian = (1 - alpha_bar).sqrt() / variance * (x_t - alpha_bar.sqrt() * self.mean)
        return gaussian + (signal / variance).sqrt() * self.network(x_t / variance.sqrt(), t)

    def predict_original(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[y | x_t] in VP space, not clamped to [−1, 1]."""
        alpha_bar = self.alpha_bar(t).to(x_t.dtype).view(-1, 1, 1, 1)
        return (x_t - (1 - alpha_bar).sqrt() * self.predict_noise(x_t, t)) / alpha_bar.sqrt()

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """E[x0 | x] for x = x0 + σz in image space; `sigma` is one level or N levels. Not clamped to [0, 1]."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        scale = (1 + 4 * sigma**2).rsqrt().view(-1, 1, 1, 1)  # √ᾱ
        return x - sigma.view(-1, 1, 1, 1) * self.predict_noise(scale * (2 * x - 1), self.timestep(sigma))

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """∇log p_σ(x) = (E[x0 | x] − x)/σ², the gradient of the density of x = x0 + σz."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        return (self.denoise(x, sigma) - x) / sigma.view(-1, 1, 1, 1) ** 2


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear through (knots, values), knots increasing; constant outside them."""
    right = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
    weight = (x - knots[right - 1]) / (knots[right] - knots[right - 1])
    return torch.lerp(values[right - 1], values[right], weight.clamp(0, 1))


def build(mean: Tensor, std: float | Tensor, channels: tuple[int, ...]) -> ScoreModel:
    """An untrained model of data with this mean image (C×H×W) and std. Raises VceError for a shape or widths that the
    network cannot have.
    """
    image_shape = tuple(mean.shape)
    if image_shape[1] % 4 or image_shape[2] % 4:
        raise VceError(f"image_shape {image_shape}: height and width must be divisible by 4")
    if len(channels) != 2 or any(width < 8 or width % 8 for width in channels):
        raise VceError(f"channels {tuple(channels)}: needs two widths that are multiples of 8")
    return ScoreModel(UNet(image_shape, tuple(channels)), mean, std)


def train_diffusion(
    images: Tensor, recipe: Recipe, seed: int, progress: Callable[[dict], None] | None = None
) -> ScoreModel:
    """Fit ε̂ to N×C×H×W images in [0, 1]: mean squared error at random t, AdamW, one-cycle rate; same seed, same bits.

    Returns the model in eval mode, its parameters frozen. Raises VceError when the loss stops being finite.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        mean = images.mean(0)
        model = build(2 * mean - 1, 2 * (images - mean).std(), recipe.channels)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    batches = -(-len(images) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=recipe.epochs * batches)
    for epoch in range(recipe.epochs):
        total = torch.zeros(())
        for rows in torch.randperm(len(images), generator=generator).split(recipe.batch_size):
            # one t from each of the batch's equal shares of the schedule
            t = (torch.arange(len(rows)) + torch.rand(len(rows), generator=generator)) * (TIMESTEPS / len(rows))
            t = t.floor().clamp(max=TIMESTEPS - 1)
            alpha_bar = model.alpha_bar(t).view(-1, 1, 1, 1)
            noise = torch.randn(len(rows), *model.image_shape, generator=generator)
            x_t = alpha_bar.sqrt() * (2 * images[rows] - 1) + (1 - alpha_bar).sqrt() * noise
            optimiser.zero_grad()
            loss = F.mse_loss(model.predict_noise(x_t, t), noise)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.detach() * len(rows)
        mean = (total / len(images)).item()
        if not math.isfinite(mean):
            raise VceError(f"training diverged in epoch {epoch + 1}: the loss is not finite; lower `learning_rate`")
        if progress:
            progress({"epoch": epoch + 1, "epochs": recipe.epochs, "loss": mean})
    return model.eval().requires_grad_(False)


@torch.no_grad()
def denoising_errors(model: ScoreModel, images: Tensor, mean: Tensor, seed: int = 0) -> dict[str, dict[str, float]]:
    """Mean squared error of `denoise` on held-out images at every σ of `SIGMAS`, in image units, beside two trivial
    denoisers: the mean image of the training data (C×H×W), and the noisy image itself.
    """
    generator = torch.Generator().manual_seed(seed)
    errors = {}
    for sigma in SIGMAS:
        noisy = images + sigma * torch.randn(images.shape, generator=generator)
        denoised = torch.cat([model.denoise(x, sigma) for x in noisy.split(64)])
        guesses = {"model": denoised, "mean": mean, "noisy": noisy}
        errors[f"{sigma:g}"] = {name: (guess - images).square().mean().item() for name, guess in guesses.items()}
    return errors


def save_diffusion(model: ScoreModel, path: Path, facts: dict) -> None:
    """Write a trained model atomically; `facts` (recipe, held-out errors) are kept as JSON metadata."""
    channels = model.network.body.config.block_out_channels
    write_tensors(path, "diffusion", model.state_dict(), {"channels": channels, "facts": facts})


def load_diffusion(path: Path | str) -> ScoreModel:
    """The model in a file of `save_diffusion`, in eval mode, its parameters frozen.

    Raises VceError when the file is damaged or is not one of ours.
    """
    header, state = read_tensors(path, "diffusion")
    try:
        model = build(state["mean"], state["std"], tuple(header["channels"]))
        model.load_state_dict(state, strict=True)
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        raise not_a("diffusion", path, "its tensors are not those of its network") from error
    return model.eval().requires_grad_(False)

"""Variational autoencoders of images: networks, the ELBO, training, files (Clarity spec §2.2).

Prior p(z) = N(0, I); encoder q(z|x) = N(μ(x), diag s²(x)); decoder mean g(z) in [0, 1]. Training maximises

    E_q[log p(x|z)] − β KL(q(z|x) ‖ p(z)),     KL = ½ Σ_j (μ_j² + s_j² − 1 − log s_j²)

with log p(x|z) summed over colour values: Bernoulli, or Gaussian of one scalar σ, fixed or learned. The learned σ² is
the mean squared error of the batch, its maximum of the likelihood in closed form (Rybkin et al., ICML 2021).
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import VceError
from common.tensors import not_a, read_tensors, write_tensors


@dataclass(frozen=True)
class Recipe:
    """How a VAE is built and trained.

    `widths`: hidden units of the MLP encoder, or channels of its strided convolutions; the decoder mirrors them.
    `latent`: size of an MLP's latent, or channels of the latent grid that convolutions end in.
    `sigma`: of the Gaussian likelihood; None learns it. `shift`: training images move by up to so many pixels.
    """

    architecture: Literal["mlp", "conv"]
    latent: int
    epochs: int
    widths: tuple[int, ...] = (512, 256)
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    beta: float = 1.0
    sigma: float | None = None
    shift: int = 0
    batch_size: int = 128
    learning_rate: float = 1e-3


class VAE(nn.Module):
    """Encoder and decoder of C×H×W images with d latents: (d,) of an MLP, a grid (c, h, w) of convolutions.

    `encode` maps N×C×H×W images in [0, 1] to (μ, s), N×d each, a grid flattened; `decode` maps N×d latents to images in
    [0, 1]. Raises VceError for images of another shape.
    """

    def __init__(self, architecture: str, image_shape: tuple[int, int, int], latent: int, widths: tuple[int, ...]):
        super().__init__()
        self.architecture, self.image_shape = architecture, tuple(image_shape)
        self.latent, self.widths = latent, tuple(widths)
        if architecture not in BUILDERS:
            raise VceError(f"architecture {architecture!r} is unknown; choose one of {', '.join(BUILDERS)}")
        self.encoder, self.decoder = BUILDERS[architecture](self.image_shape, latent, self.widths)
        factor = 2 ** len(self.widths)
        grid = (latent, image_shape[1] // factor, image_shape[2] // factor)
        self.latent_shape = (latent,) if architecture == "mlp" else grid

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if tuple(images.shape[1:]) != self.image_shape:
            raise VceError(f"images of shape {tuple(images.shape[1:])}: the VAE was trained on {self.image_shape}")
        mean, log_variance = self.encoder(images).chunk(2, 1)
        return mean, (0.5 * log_variance.clamp(-20, 20)).exp()

    @property
    def prior_radius(self) -> float:
        """The norm that 99.9 % of the prior's latents stay below: the χ quantile of d degrees of freedom."""
        from scipy.special import gammaincinv  # a fifth of a second of imports

        return math.sqrt(2 * gammaincinv(math.prod(self.latent_shape) / 2, 0.999))

    def decode(self, z: Tensor) -> Tensor:
        return self.decode_logits(z).sigmoid()

    def decode_logits(self, z: Tensor) -> Tensor:
        """Decoder output before the sigmoid, N×C×H×W."""
        return self.decoder(z).view(-1, *self.image_shape)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """g(μ(x))."""
        return torch.cat([self.decode(self.encode(x)[0]) for x in images.split(batch_size)])

    @torch.no_grad()
    def latents(self, images: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
        """(μ, s) of many images."""
        parts = [self.encode(x) for x in images.split(batch_size)]
        return torch.cat([mean for mean, _ in parts]), torch.cat([std for _, std in parts])


def _mlp(image_shape: tuple[int, int, int], latent: int, widths: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    sizes = [math.prod(image_shape), *widths]

    def layers(path: list[int]) -> list[nn.Module]:
        return [layer for a, b in itertools.pairwise(path) for layer in (nn.Linear(a, b), nn.ReLU())]

    encoder = nn.Sequential(nn.Flatten(), *layers(sizes), nn.Linear(sizes[-1], 2 * latent))
    decoder = nn.Sequential(*layers([latent, *sizes[:0:-1]]), nn.Linear(sizes[1], sizes[0]))
    return encoder, decoder


def _conv(image_shape: tuple[int, int, int], channels: int, widths: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    inner, height, width = image_shape
    factor = 2 ** len(widths)
    if height % factor or width % factor:
        raise VceError(
            f"image_shape {image_shape}: {len(widths)} strided convolutions need sides divisible by {factor}"
        )
    down, up = [], []
    for outer in widths:
        down += [nn.Conv2d(inner, outer, 4, 2, 1), nn.SiLU()]
        up = [nn.SiLU(), nn.ConvTranspose2d(outer, inner, 4, 2, 1), *up]
        inner = outer
    encoder = nn.Sequential(*down, nn.Conv2d(inner, 2 * channels, 3, 1, 1), nn.Flatten())
    grid = (channels, height // factor, width // factor)
    return encoder, nn.Sequential(nn.Unflatten(1, grid), nn.Conv2d(channels, inner, 3, 1, 1), *up)


BUILDERS = {"mlp": _mlp, "conv": _conv}


def kl_to_prior(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(μ, diag s²) ‖ N(0, I)) in nats: N numbers from N×d each."""
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum(1)


def negative_log_likelihood(vae: VAE, images: Tensor, z: Tensor, likelihood: str, sigma: float | None) -> Tensor:
    """−log p(x|z) in nats, up to the constant of the Gaussian: N numbers. `sigma` None is that of the batch."""
    if likelihood == "bernoulli":
        return F.binary_cross_entropy_with_logits(vae.decode_logits(z), images, reduction="none").flatten(1).sum(1)
    squares = (vae.decode(z) - images).square().flatten(1)
    variance = squares.mean() if sigma is None else torch.tensor(sigma**2)
    return (squares / variance + variance.log()).sum(1) / 2


def train_vae(images: Tensor, recipe: Recipe, seed: int, progress: Callable[[dict], None] | None = None) -> VAE:
    """Fit a VAE to N×C×H×W images in [0, 1], without labels: Adam, one-cycle rate; same seed, same bits.

    Returns it in eval mode, its parameters frozen. Raises VceError when the loss stops being finite.
    """
    if recipe.likelihood not in ("bernoulli", "gaussian"):
        raise VceError(f"likelihood {recipe.likelihood!r} is unknown; choose bernoulli or gaussian")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        vae = VAE(recipe.architecture, tuple(images.shape[1:]), recipe.latent, tuple(recipe.widths))
    generator = torch.Generator().manual_seed(seed)
    batches = -(-len(images) // recipe.batch_size)
    optimiser = torch.optim.Adam(vae.parameters(), recipe.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 2 * recipe.learning_rate, total_steps=recipe.epochs * batches
    )
    for epoch in range(recipe.epochs):
        total = torch.zeros(())
        for rows in torch.randperm(len(images), generator=generator).split(recipe.batch_size):
            x = shifted(images[rows], recipe.shift, generator)
            mean, std = vae.encode(x)
            z = mean + std * torch.randn(mean.shape, generator=generator)
            loss = negative_log_likelihood(vae, x, z, recipe.likelihood, recipe.sigma)
            loss = (loss + recipe.beta * kl_to_prior(mean, std)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.detach() * len(rows)
        mean_loss = (total / len(images)).item()
        if not math.isfinite(mean_loss):
            raise VceError(f"training diverged in epoch {epoch + 1}: the loss is not finite; lower `learning_rate`")
        if progress:
            progress({"epoch": epoch + 1, "epochs": recipe.epochs, "loss": mean_loss})
    return vae.eval().requires_grad_(False)


def shifted(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Each image moved by its own whole number of pixels, up to `reach` either way; what comes in is black."""
    if not reach:
        return images
    n, _, height, width = images.shape
    dy, dx = torch.randint(0, 2 * reach + 1, (2, n, 1), generator=generator)
    rows, columns = dy + torch.arange(height), dx + torch.arange(width)
    padded = F.pad(images, (reach,) * 4).permute(0, 2, 3, 1)
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def save_vae(vae: VAE, path: Path, facts: dict) -> None:
    """Write a trained VAE atomically; `facts` (recipe, held-out losses) are kept as JSON metadata."""
    header = {name: getattr(vae, name) for name in ("architecture", "image_shape", "latent", "widths")}
    write_tensors(path, "VAE", vae.state_dict(), {**header, "facts": facts})


def load_vae(path: Path | str, image_shape: tuple[int, int, int] | None = None) -> VAE:
    """The VAE in a file of `save_vae`, in eval mode, its parameters frozen.

    Raises VceError when the file is damaged, is not one of ours, or was trained on images that are not `image_shape`.
    """
    header, state = read_tensors(path, "VAE")
    try:
        vae = VAE(header["architecture"], tuple(header["image_shape"]), header["latent"], tuple(header["widths"]))
        vae.load_state_dict(state, strict=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise not_a("VAE", path, "its tensors are not those of its networks") from error
    if image_shape is not None and vae.image_shape != tuple(image_shape):
        raise VceError(f"{path}: a VAE of {vae.image_shape} images, the data are {tuple(image_shape)}; choose another")
    return vae.eval().requires_grad_(False)

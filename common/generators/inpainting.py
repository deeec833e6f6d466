"""Learned in-fillers: a U-Net, and a conditional VAE (CVAE) that samples (FIDO spec §2.5, §9.2).

Both see the kept pixels x⊙m and the mask m alone and predict the image at every pixel. The U-Net is deterministic and,
like the paper's CA-GAN, returns kept pixels as they are; its loss is L1 + ½L2 on hidden pixels plus a tenth of L1 on
kept ones. The CVAE (Sohn et al., NeurIPS 2015) maximises a bound on the likelihood of the hidden pixels x_h,

    E_q[log p(x_h | z, x⊙m, m)] − β KL(q(z | x, x⊙m, m) ‖ p(z | x⊙m, m)),     q and p diagonal Gaussians,

with a Gaussian of one σ, learned as in `common.generators.vae`. An in-fill is the decoder's mean at z ~ p: at all
pixels, as in the paper, although kept ones have no part in this loss.
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
from common.explain import Streams
from common.generators.infill import Infill
from common.tensors import not_a, read_tensors, write_tensors

GRID = 5  # random values along each side of a smooth field
SIDES = (4 / 32, 23 / 32)  # of a hidden rectangle, least and greatest, as shares of the image's
CHUNK = 64  # in-fills per pass: 32 to 256 cost the same on one thread, within a tenth


@dataclass(frozen=True)
class Recipe:
    """How an in-filler is built and trained.

    `widths`: channels at 1/2, 1/4, ... of the image's resolution. `latent` and `beta`, the weight of the KL term, are
    the CVAE's.
    """

    architecture: Literal["unet", "cvae"]
    steps: int
    widths: tuple[int, ...] = (32, 48, 64)
    latent: int = 16
    beta: float = 1.0
    batch_size: int = 16
    learning_rate: float = 8e-3


def _block(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    # one group: normalised by few channels alone, features would lose the level of the image
    return nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1), nn.GroupNorm(1, outer), nn.SiLU())


def _encoder(channels: int, widths: tuple[int, ...]) -> nn.ModuleList:
    """One stage per width, each at half the resolution of the one before; the first on 2×2 blocks of pixels, which
    halves the cost of full resolution."""
    rest = (nn.Sequential(_block(a, b, 2), _block(b, b)) for a, b in itertools.pairwise(widths))
    return nn.ModuleList([nn.Sequential(nn.PixelUnshuffle(2), _block(4 * channels, widths[0])), *rest])


class UNet(nn.Module):
    """Predicts C×H×W images in [0, 1] from their kept pixels.

    `forward` maps N×C×H×W images in [0, 1], N×H×W masks of 0 (hidden) and 1 (kept) and N×d noise, here d = 0, to the
    prediction at all pixels, N×C×H×W. Hidden pixels are zeroed first, and cannot move it. Raises VceError for odd
    heights and widths.
    """

    architecture = "unet"
    composites = True
    latent = 0

    def __init__(self, image_shape: tuple[int, int, int], widths: tuple[int, ...]):
        super().__init__()
        self.image_shape, self.widths = tuple(image_shape), tuple(widths)
        channels, height, width = self.image_shape
        if height % 2 or width % 2:
            raise VceError(f"image_shape {self.image_shape}: height and width must be even")
        self.encoder = _encoder(channels + 1, self.widths)
        self.middle = _block(widths[-1], widths[-1])
        self.decoder = nn.ModuleList(_block(a + b, a) for a, b in reversed(list(itertools.pairwise(self.widths))))
        self.head = nn.Sequential(nn.Conv2d(widths[0], 4 * channels, 3, 1, 1), nn.PixelShuffle(2), nn.Sigmoid())

    def features(self, images: Tensor, keep: Tensor) -> list[Tensor]:
        """What each stage of the encoder makes of ((2x − 1)⊙m, m), N×width×height×width each."""
        if (shape := tuple(images.shape[1:])) != self.image_shape:
            raise VceError(f"images of shape {shape}: the in-filler was trained on {self.image_shape}")
        m = keep[:, None]
        x = torch.cat([2 * images * m - m, m], 1)
        return [x := stage(x) for stage in self.encoder]

    def decode(self, features: list[Tensor]) -> Tensor:
        *skips, deepest = features
        x = self.middle(deepest)
        for skip, block in zip(reversed(skips), self.decoder, strict=True):
            x = block(torch.cat([F.interpolate(x, skip.shape[2:]), skip], 1))
        return self.head(x)

    def forward(self, images: Tensor, keep: Tensor, z: Tensor) -> Tensor:
        return self.decode(self.features(images, keep))

    def loss(self, images: Tensor, keep: Tensor, beta: float, generator: torch.Generator) -> Tensor:
        """L1 + ½L2 on hidden pixels and .1 L1 on kept ones, per colour value; no KL term for `beta` to weigh."""
        error = self.decode(self.features(images, keep)) - images
        return _mean_where(error.abs() + error.square() / 2, 1 - keep) + 0.1 * _mean_where(error.abs(), keep)


class CVAE(UNet):
    """The U-Net with a latent of d numbers added to its deepest features.

    `prior` and `posterior` give (μ, s), N×d each; `forward` turns N×d standard normal noise into a draw of the prior
    and returns the decoder's mean.
    """

    architecture = "cvae"
    composites = False

    def __init__(self, image_shape: tuple[int, int, int], widths: tuple[int, ...], latent: int):
        super().__init__(image_shape, widths)
        self.latent = latent
        channels, *sides = self.image_shape
        grid = (widths[-1], *(-(-side // 2 ** len(widths)) for side in sides))
        size = math.prod(grid)
        encoder = _encoder(2 * channels + 1, self.widths)
        self.to_prior = nn.Sequential(nn.Flatten(), nn.Linear(size, 2 * latent))
        self.to_posterior = nn.Sequential(*encoder, nn.Flatten(), nn.Linear(size, 2 * latent))
        self.from_latent = nn.Sequential(nn.Linear(latent, size), nn.Unflatten(1, grid))

    def prior(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        return _mean_and_std(self.to_prior(features[-1]))

    def posterior(self, images: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        m = keep[:, None]
        return _mean_and_std(self.to_posterior(torch.cat([2 * images - 1, 2 * images * m - m, m], 1)))

    def decode(self, features: list[Tensor], z: Tensor) -> Tensor:
        return super().decode([*features[:-1], features[-1] + self.from_latent(z)])

    def forward(self, images: Tensor, keep: Tensor, z: Tensor) -> Tensor:
        features = self.features(images, keep)
        mean, std = self.prior(features)
        return self.decode(features, mean + std * z)

    def loss(self, images: Tensor, keep: Tensor, beta: float, generator: torch.Generator) -> Tensor:
        """The negative bound in nats per image, up to the constant of the Gaussian, whose σ² is the mean squared error
        of the batch at hidden pixels."""
        features = self.features(images, keep)
        prior, (mean, std) = self.prior(features), self.posterior(images, keep)
        z = mean + std * torch.randn(mean.shape, generator=generator)
        variance = _mean_where((self.decode(features, z) - images).square(), 1 - keep)
        hidden_values = (1 - keep).sum() * images.shape[1] / len(images)
        return hidden_values * variance.log() / 2 + beta * kl_divergence((mean, std), prior).mean()


def _mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance = values.chunk(2, 1)
    return mean, (0.5 * log_variance.clamp(-20, 20)).exp()


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    """The mean of N×C×H×W values where N×H×W weights are 1."""
    return (values.mean(1) * where).sum() / where.sum().clamp_min(1)


def kl_divergence(q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor]) -> Tensor:
    """KL(q ‖ p) in nats of diagonal Gaussians (μ, s): N numbers from N×d each."""
    ratio = (q[1] / p[1]).square()
    return 0.5 * (ratio + ((q[0] - p[0]) / p[1]).square() - 1 - ratio.log()).sum(1)


@dataclass(frozen=True, eq=False)
class Learned:
    """The in-filler (`common.generators.infill.Infill`) of a trained network. Raises VceError for images of another
    shape than it was trained on."""

    network: UNet
    constant = False

    @property
    def composites(self) -> bool:
        return self.network.composites

    @torch.no_grad()
    def __call__(self, images: Tensor, keep: Tensor, rng: Streams) -> Tensor:
        z = rng.normal((keep.shape[1], self.network.latent), "infill.latent")
        x = images[:, None].expand(-1, keep.shape[1], -1, -1, -1)
        parts = zip(*(part.flatten(0, 1).split(CHUNK) for part in (x, keep, z)), strict=True)
        predicted = torch.cat([self.network(*part) for part in parts]).unflatten(0, keep.shape[:2])
        return torch.where(keep[:, :, None] > 0, x, predicted) if self.composites else predicted


def training_masks(n: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """N×H×W masks of 0 (hidden) and 1 (kept), a quarter each, in this order: pixels kept independently at one rate in
    [.02, .9]; 1 to 3 hidden rectangles; pixels kept with the probabilities of a smooth random field; the lowest values
    of such a field hidden, a share in [.1, .9] of them."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    a, b, c, d = ((n + k) // 4 for k in range(4))
    pixels = uniform(a, *size) < 0.02 + 0.88 * uniform(a, 1, 1)
    least, most = (torch.tensor([round(share * side) for side in size]) for share in SIDES)
    sides = (least + (most - least + 1) * uniform(b, 3, 2)).floor()
    used = torch.arange(3) < 1 + (3 * uniform(b, 1)).floor()
    corners = (uniform(b, 3, 2) * (torch.tensor(size) - sides + 1)).floor()
    rectangles = ~(_rectangles(corners, sides, size) & used[:, :, None, None]).any(1)
    coarse = torch.randn(c + d, 1, GRID, GRID, generator=generator)
    odds, heights = F.interpolate(coarse, size, mode="bicubic")[:, 0].split((c, d))
    sampled = uniform(c, *size) < (3 * odds + torch.randn(c, 1, 1, generator=generator)).sigmoid()
    rank = heights.flatten(1).argsort(1).argsort(1).view(d, *size)
    thresholded = rank >= (0.1 + 0.8 * uniform(d, 1, 1)) * math.prod(size)
    return torch.cat([pixels, rectangles, sampled, thresholded]).float()


BLOCK_DRAWS = 10  # uniform numbers that make one block mask


def block_masks(u: Tensor, size: tuple[int, int], share: float) -> Tensor:
    """N×H×W masks that hide about `share` of the pixels, each made of 10 uniform numbers u, N×10: half of them in one
    rectangle, the others in two, one in the left and one in the right half of the image."""
    region = torch.tensor([size, (size[0], size[1] // 2), (size[0], size[1] // 2)])
    height = share ** (0.25 + 0.5 * u[:, :3])
    sides = (torch.stack([height, share / height], 2) * region).round()
    corners = (u[:, 3:9].unflatten(1, (3, 2)) * (region - sides + 1)).floor()
    corners[:, 2, 1] += size[1] - size[1] // 2
    one, left, right = _rectangles(corners, sides, size).unbind(1)
    return 1 - torch.where((u[:, 9] < 0.5)[:, None, None], one, left | right).float()


def _rectangles(corners: Tensor, sides: Tensor, size: tuple[int, int]) -> Tensor:
    """N×K×H×W, true inside each of N×K rectangles; `corners` and `sides` are N×K×2, (row, column) in pixels."""
    inside = [
        (torch.arange(length) >= corners[..., axis, None]) & (torch.arange(length) < (corners + sides)[..., axis, None])
        for axis, length in enumerate(size)
    ]
    return inside[0][..., :, None] & inside[1][..., None, :]


def build(architecture: str, image_shape: tuple[int, int, int], widths: tuple[int, ...], latent: int) -> UNet:
    """An untrained network. Raises VceError for an unknown architecture."""
    if architecture == "unet":
        return UNet(image_shape, widths)
    if architecture == "cvae":
        return CVAE(image_shape, widths, latent)
    raise VceError(f"architecture {architecture!r} is unknown; choose unet or cvae")


def train_infill(images: Tensor, recipe: Recipe, seed: int, progress: Callable[[dict], None] | None = None) -> UNet:
    """Fit an in-filler to N×C×H×W images in [0, 1], without labels: Adam, one-cycle rate; same seed, same bits.

    Returns it in eval mode, its parameters frozen. Raises VceError when the loss stops being finite.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = build(recipe.architecture, tuple(images.shape[1:]), tuple(recipe.widths), recipe.latent)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(network.parameters(), recipe.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=recipe.steps)
    for step in range(recipe.steps):
        x = images[torch.randint(len(images), (recipe.batch_size,), generator=generator)]
        loss = network.loss(x, training_masks(len(x), tuple(x.shape[2:]), generator), recipe.beta, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if not math.isfinite(loss.item()):
            raise VceError(f"training diverged in step {step + 1}: the loss is not finite; lower `learning_rate`")
        if progress:
            progress({"step": step + 1, "steps": recipe.steps, "loss": loss.item()})
    return network.eval().requires_grad_(False)


def hidden_error(filled: Tensor, images: Tensor, keep: Tensor) -> Tensor:
    """N×M mean absolute errors of N×M×C×H×W in-fills at the pixels that N×M×H×W masks hide; 0 where none is."""
    error, hidden = (filled - images[:, None]).abs().mean(2), 1 - keep
    return (error * hidden).sum((2, 3)) / hidden.sum((2, 3)).clamp_min(1)


def held_out(infill: Infill, images: Tensor, keep: Tensor, rng: Streams) -> float:
    """Mean error at hidden pixels, over the N×M masks `keep`."""
    return hidden_error(infill(images, keep, rng), images, keep).mean().item()


def save_infill(network: UNet, path: Path, facts: dict) -> None:
    """Write a trained network atomically; `facts` (recipe, held-out errors) are kept as JSON metadata."""
    header = {name: getattr(network, name) for name in ("architecture", "image_shape", "widths", "latent")}
    write_tensors(path, "infill", network.state_dict(), {**header, "facts": facts})


def load_infill(path: Path | str, image_shape: tuple[int, int, int] | None = None) -> UNet:
    """The network in a file of `save_infill`, in eval mode, its parameters frozen.

    Raises VceError when the file is damaged, is not one of ours, or was trained on images that are not `image_shape`.
    """
    header, state = read_tensors(path, "infill")
    try:
        shape, widths = tuple(header["image_shape"]), tuple(header["widths"])
        network = build(header["architecture"], shape, widths, header["latent"])
        network.load_state_dict(state, strict=True)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise not_a("infill", path, "its tensors are not those of its network") from error
    if image_shape is not None and shape != tuple(image_shape):
        raise VceError(f"{path}: an in-filler of {shape} images, the data are {tuple(image_shape)}; choose another")
    return network.eval().requires_grad_(False)

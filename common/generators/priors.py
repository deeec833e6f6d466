"""Untrained image priors: a network of its own for every query, of which only the weights are optimised.

    x̄ = G_θ(z),   θ per query;   `inr`: a coordinate network, `dip`: an untrained skip U-Net on a fixed noise image

(DISC spec §2.3; Tancik et al. 2020 for Fourier features, Sitzmann et al. 2020 for SIREN, Ulyanov et al. 2018 for deep
image priors.) Q queries are one batched network: every weight is Q×…, a product of the batch is a batched matrix
product, a convolution a grouped one, and normalisation is per image. A sum of losses over queries with Adam, which is
per parameter, equals Q independent runs.

    prior = CoordinateNetwork((3, 32, 32))
    weights = prior.initial(rng)                # one stream per query: the same weights in any batch
    images = prior(weights)                     # Q×3×32×32 in [0, 1]
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import VceError
from common.explain import Streams

Weights = dict[str, Tensor]
OMEGA = 30.0  # SIREN's frequency


@dataclass(frozen=True)
class CoordinateNetwork:
    """Implicit neural representation: an MLP from coordinates in [−1, 1]² to C colour values.

    `fourier`: sines and cosines of π·(scale/2)·B·(u, v), B of `frequencies` Gaussian rows shared by all queries, then
    `layers` hidden ReLU layers of width `hidden`. `siren`: hidden layers sin(ω₀(W·h + b)) on the coordinates
    themselves. A larger `scale` turns it into pixel optimisation, a smaller one blurs (spec §8.10).
    """

    image_shape: tuple[int, int, int]
    hidden: int = 32
    layers: int = 3
    kind: Literal["fourier", "siren"] = "fourier"
    frequencies: int = 32
    scale: float = 4.0
    learning_rate: float = 5e-3
    features: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.kind not in ("fourier", "siren"):
            raise VceError(f"prior {self.kind!r} is unknown; choose fourier or siren")
        _, height, width = self.image_shape
        v, u = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        coordinates = torch.stack([u, v]).flatten(1)
        if self.kind == "fourier":
            directions = torch.randn(self.frequencies, 2, generator=torch.Generator().manual_seed(0))
            phase = math.pi * self.scale / 2 * directions @ coordinates
            coordinates = torch.cat([phase.sin(), phase.cos()])
        object.__setattr__(self, "features", coordinates)

    @property
    def groups(self) -> list[list[str]]:
        """The names of the weights from the output layer to the coordinates: coarse to fine."""
        return [[f"{k}.weight", f"{k}.bias"] for k in reversed(range(self.layers + 1))]

    def sizes(self) -> list[int]:
        return [len(self.features), *[self.hidden] * self.layers, self.image_shape[0]]

    def initial(self, rng: Streams) -> Weights:
        """Weights Q×out×in and biases Q×out×1, uniform: ±1/√in, or SIREN's bounds."""
        weights, sizes = {}, self.sizes()
        for k, (inner, outer) in enumerate(itertools.pairwise(sizes)):
            bound = 1 / math.sqrt(inner)
            if self.kind == "siren":
                bound = 1 / inner if k == 0 else math.sqrt(6 / inner) / OMEGA
            for name, shape in (("weight", (outer, inner)), ("bias", (outer, 1))):
                weights[f"{k}.{name}"] = bound * (2 * rng.uniform(shape, f"inr.{k}.{name}") - 1)
        return weights

    def __call__(self, weights: Weights) -> Tensor:
        h = self.features  # shared by all queries: the first product is one large one
        for k in range(self.layers + 1):
            h = torch.matmul(weights[f"{k}.weight"], h) + weights[f"{k}.bias"]
            if k < self.layers:
                h = h.relu() if self.kind == "fourier" else (OMEGA * h).sin()
        return h.sigmoid().view(-1, *self.image_shape)


@dataclass(frozen=True)
class DeepImagePrior:
    """Untrained U-Net: `widths` channels down by strided 3×3 convolutions and up again by nearest neighbours, each
    level joined by a 1×1 skip of `skip` channels; LeakyReLU .2; normalisation per image, so that no query sees another.

    Its input, `depth` channels of uniform noise ×.1, is drawn once per query and never optimised.
    """

    image_shape: tuple[int, int, int]
    widths: tuple[int, ...] = (16, 32, 32)
    skip: int = 4
    depth: int = 8
    learning_rate: float = 1e-2

    def __post_init__(self):
        factor = 2 ** len(self.widths)
        if self.image_shape[1] % factor or self.image_shape[2] % factor:
            raise VceError(f"a deep image prior of {len(self.widths)} levels needs sides divisible by {factor}")

    @property
    def groups(self) -> list[list[str]]:
        """The names of the weights by level of the decoder, from deep to shallow: coarse to fine; the encoder last."""
        blocks = [[f"up{k}", f"mix{k}"] for k in reversed(range(len(self.widths)))]
        blocks[-1] += ["out", *(name for name in self.convolutions() if name.startswith(("skip", "down", "deep")))]
        return [[f"{name}.{part}" for name in names for part in ("weight", "gain", "shift")] for names in blocks]

    def convolutions(self) -> dict[str, tuple[int, int, int]]:
        """(in, out, kernel) of every convolution by name."""
        found, inner = {}, self.depth
        for k, width in enumerate(self.widths):
            found |= {f"skip{k}": (inner, self.skip, 1), f"down{k}": (inner, width, 3), f"deep{k}": (width, width, 3)}
            inner = width
        for k in reversed(range(len(self.widths))):
            width = self.widths[max(k - 1, 0)]
            found |= {f"up{k}": (inner + self.skip, width, 3), f"mix{k}": (width, width, 1)}
            inner = width
        return found | {"out": (inner, self.image_shape[0], 1)}

    def initial(self, rng: Streams) -> Weights:
        """Weights Q×out×in×k×k and biases or, where normalised, gains and shifts Q×out, and the fixed noise."""
        weights = {"noise": 0.1 * rng.uniform((self.depth, *self.image_shape[1:]), "dip.noise")}
        for name, (inner, outer, kernel) in self.convolutions().items():
            bound = 1 / math.sqrt(inner * kernel * kernel)
            drawn = rng.uniform((outer, inner, kernel, kernel), f"dip.{name}")
            weights[f"{name}.weight"] = bound * (2 * drawn - 1)
            weights[f"{name}.shift"] = torch.zeros(len(rng), outer)
            if name != "out":
                weights[f"{name}.gain"] = torch.ones(len(rng), outer)
        return weights

    def __call__(self, weights: Weights) -> Tensor:
        h, skips = weights["noise"], []
        for k in range(len(self.widths)):
            skips.append(_block(weights, f"skip{k}", h))
            h = _block(weights, f"deep{k}", _block(weights, f"down{k}", h, stride=2))
        for k in reversed(range(len(self.widths))):
            h = torch.cat([F.interpolate(h, scale_factor=2), skips[k]], 1)
            h = _block(weights, f"mix{k}", _block(weights, f"up{k}", h))
        return (_convolution(weights, "out", h) + weights["out.shift"][..., None, None]).sigmoid()


@dataclass(frozen=True)
class FreePixels:
    """No prior: the pixels themselves, as logits so that they stay in [0, 1]; they start `at` an image."""

    learning_rate: float = 5e-3

    def at(self, images: Tensor) -> Weights:
        return {"logits": images.clamp(1e-3, 1 - 1e-3).logit()}

    def __call__(self, weights: Weights) -> Tensor:
        return weights["logits"].sigmoid()


Prior = CoordinateNetwork | DeepImagePrior | FreePixels
FIXED = ("noise",)  # never optimised


def _convolution(weights: Weights, name: str, h: Tensor, stride: int = 1) -> Tensor:
    """Every query's own convolution of its own Q×in×H×W input: one grouped convolution of Q groups."""
    weight = weights[f"{name}.weight"]
    q, outer, inner, kernel, _ = weight.shape
    flat = F.conv2d(h.reshape(1, q * inner, *h.shape[2:]), weight.flatten(0, 1), None, stride, kernel // 2, groups=q)
    return flat.view(q, outer, *flat.shape[2:])


def _block(weights: Weights, name: str, h: Tensor, stride: int = 1) -> Tensor:
    h = F.instance_norm(_convolution(weights, name, h, stride))
    h = h * weights[f"{name}.gain"][..., None, None] + weights[f"{name}.shift"][..., None, None]
    return F.leaky_relu(h, 0.2)


PRIORS: dict[str, Callable[..., Prior]] = {"inr": CoordinateNetwork, "dip": DeepImagePrior}


class Optimiser:
    """Adam on the weights of Q independent queries; `optimiser[rows]` is a copy that holds some of them, with their
    moments."""

    def __init__(self, prior: Prior, weights: Weights):
        self.prior = prior
        self.weights = {
            name: value.detach().clone().requires_grad_(name not in FIXED) for name, value in weights.items()
        }
        moving = [value for name, value in self.weights.items() if name not in FIXED]
        self.adam = torch.optim.Adam(moving, prior.learning_rate, fused=True)

    def __getitem__(self, rows: Tensor) -> "Optimiser":
        chosen = Optimiser(self.prior, {name: value.detach()[rows] for name, value in self.weights.items()})
        before, after = (optimiser.adam.param_groups[0]["params"] for optimiser in (self, chosen))
        for old, new in zip(before, after, strict=True):
            state = self.adam.state[old]
            if state:
                moments = {name: state[name][rows] for name in ("exp_avg", "exp_avg_sq")}
                chosen.adam.state[new] = {"step": state["step"].clone(), **moments}
        return chosen

    def images(self) -> Tensor:
        return self.prior(self.weights)

    def step(self, loss: Tensor, moving: set[str] | None = None) -> None:
        """One step down the sum of Q losses, of all weights or of those named in `moving`."""
        self.adam.zero_grad()
        loss.sum().backward()
        for name, value in self.weights.items():
            if moving is not None and name not in moving:
                value.grad = None
        self.adam.step()

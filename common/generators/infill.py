"""In-filling: what could stand where an image is hidden, x̂ ~ p_G(x̂ | kept pixels) (FIDO spec §2.5).

    x̂ = infill(images, keep, rng)

`images` N×C×H×W in [0, 1]; `keep` N×M×H×W, M masks per image, 1 where a pixel is kept and 0 where it is hidden; `rng`
the `Streams` of the N samples; x̂ N×M×C×H×W in [0, 1]. `Mean`, `Blur` and `Random` ignore the mask; the others see kept
pixels alone, so that hidden ones cannot move x̂. The learned ones are in `common.generators.inpainting`, those that
optimise or resample for every image in `common.generators.resampling`.
"""

import functools
import math
from dataclasses import dataclass
from typing import Protocol

import scipy.sparse
import scipy.sparse.linalg
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from common.explain import Streams

NOISE = 0.2  # of Random
ROAD_NOISE = 0.01
TOLERANCE = 1e-6  # of the linear imputation: root mean square of what is left of its equations
SWEEP = 8  # iterations of it between two looks at the residual
RIDGE = 1e-8  # the biharmonic surface's pull towards the training mean


class Infill(Protocol):
    """`composites` says that kept pixels come back as they are: the classifier's score then does not depend on how much
    of a kept pixel is mixed in, and its mask gets no gradient there. `constant`: x̂ depends on the image alone."""

    composites: bool
    constant: bool

    def __call__(self, images: Tensor, keep: Tensor, rng: Streams) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Mean:
    """One colour everywhere: the mean of the training images, C values, which is 0 in normalised space."""

    colour: Tensor
    composites = False
    constant = True

    def __call__(self, images: Tensor, keep: Tensor, rng: Streams) -> Tensor:
        return self.colour.view(-1, 1, 1).expand(*keep.shape[:2], *images.shape[1:])


@dataclass(frozen=True)
class Blur:
    """A Gaussian of `sigma` pixels over the full image, hidden pixels included: it leaks what it hides."""

    sigma: float
    composites = False
    constant = True

    def __call__(self, images: Tensor, keep: Tensor, rng: Streams) -> Tensor:
        # as far as three deviations, which reflection about the edge has to hold
        reach = min(round(3 * self.sigma), min(images.shape[2:]) - 1)
        sigma, radius = (0, 0, self.sigma, self.sigma), (0, 0, reach, reach)
        blurred = gaussian_filter(images.numpy(), sigma, mode="mirror", radius=radius)  # torchvision imports for 1.3 s
        return torch.from_numpy(blurred)[:, None].expand(-1, keep.shape[1], -1, -1, -1)


class Random:
    """One uniform colour per mask with Gaussian noise of deviation .2, clipped: as the released code, not the paper."""

    composites = False
    constant = False

    def __call__(self, images: Tensor, keep: Tensor, rng: Streams) -> Tensor:
        masks, channels = keep.shape[1], images.shape[1]
        colour = rng.uniform((masks, channels, 1, 1), "infill.colour")
        return (colour + NOISE * rng.normal((masks, *images.shape[1:]), "infill.noise")).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Local:
    """The mean of the kept pixels in a window of `window` pixels (odd); where there are none, the training mean."""

    window: int
    colour: Tensor
    composites = False
    constant = False

    def __call__(self, images: Tensor, keep: Tensor, rng: Streams) -> Tensor:
        x, m = one_per_mask(images, keep)
        count, total = (
            F.avg_pool2d(values, self.window, 1, self.window // 2, divisor_override=1) for values in (m, x * m)
        )
        return torch.where(count > 0.5, total / count.clamp_min(1), self.colour.view(-1, 1, 1)).unflatten(
            0, keep.shape[:2]
        )


@dataclass(frozen=True, eq=False)
class LinearImputation:
    """ROAD's noisy linear imputation: a hidden pixel is the weighted mean of its 8 neighbours (edges weigh twice as
    much as corners; at the border those that exist), all hidden pixels at once, plus noise of deviation .01.

    Rong et al. (ICML 2022). Solved by conjugate gradients, all masks in one batch; what no kept pixel reaches gets the
    training mean.
    """

    colour: Tensor
    composites = True
    constant = False

    def __call__(self, images: Tensor, keep: Tensor, rng: Streams) -> Tensor:
        x, m = one_per_mask(images, keep)
        solved = _harmonic(x * m, 1 - m, self.colour.view(-1, 1, 1))
        noise = ROAD_NOISE * rng.normal((keep.shape[1], *images.shape[1:]), "infill.road").flatten(0, 1)
        return torch.where(m > 0, x, (solved + noise).clamp(0, 1)).unflatten(0, keep.shape[:2])


@dataclass(frozen=True, eq=False)
class Biharmonic:
    """The smoothest surface through the kept pixels, Σ x_uu² + 2 x_uv² + x_vv² least, and of several the one nearest to
    the training mean; clipped to [0, 1]. A sparse system per mask, solved directly: for evaluation, not for a search.
    """

    colour: Tensor
    composites = True
    constant = False

    def __call__(self, images: Tensor, keep: Tensor, rng: Streams) -> Tensor:
        energy = _bending_energy(*images.shape[2:])
        filled = images[:, None].repeat(1, keep.shape[1], 1, 1, 1)
        pull = RIDGE * self.colour.double().numpy()
        for surface, image, masks in zip(filled.flatten(3), images.flatten(2), keep.flatten(2) > 0, strict=True):
            for values, kept in zip(surface, masks, strict=True):
                if kept.all():
                    continue
                known, hidden = kept.nonzero()[:, 0].numpy(), (~kept).nonzero()[:, 0].numpy()
                rows = energy[hidden]
                system = (rows[:, hidden] + RIDGE * scipy.sparse.eye_array(len(hidden))).tocsc()
                right = pull - rows[:, known] @ image[:, known].double().numpy().T
                solved = torch.from_numpy(scipy.sparse.linalg.splu(system).solve(right).T)
                values[:, hidden] = solved.to(values.dtype).clamp(0, 1)
        return filled


def one_per_mask(images: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Images NM×C×H×W and masks NM×1×H×W, one row per image and mask."""
    return images.repeat_interleave(keep.shape[1], 0), keep.flatten(0, 1)[:, None].to(images.dtype)


def _harmonic(known: Tensor, hidden: Tensor, start: Tensor) -> Tensor:
    """Solve D_u x_u = Σ_v w_uv x_v at the hidden pixels u of B×C×H×W images whose hidden pixels are 0: `hidden` is
    B×1×H×W of 0 and 1, `start` C×1×1 the first guess. Every channel of every image is a system of its own, moves no
    further once it has converged, and leaves the batch: the answer does not depend on the others."""
    shape = known.shape
    known, hidden = known.flatten(0, 1)[:, None], hidden.expand(shape).flatten(0, 1)[:, None]
    kernel = torch.tensor([[1.0, 2, 1], [2, 0, 2], [1, 2, 1]], dtype=known.dtype)[None, None] / 12
    degree = F.conv2d(torch.ones_like(hidden[:1]), kernel, padding=1)

    def apply(x: Tensor) -> Tensor:
        return inside * (degree * x - F.conv2d(x, kernel, padding=1))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((2, 3), keepdim=True)

    x = hidden * start.repeat(shape[0], 1, 1)[:, None]
    rows, inside, solved = torch.arange(len(known)), hidden, x.clone()
    target = TOLERANCE**2 * hidden.sum((2, 3), keepdim=True)
    residual = direction = inside * F.conv2d(known, kernel, padding=1) - apply(x)
    square = dot(residual, residual)
    for step in range(hidden[0].numel()):
        if step % SWEEP == 0:
            solved[rows] = x
            running = (square > target).flatten()
            if not running.any():
                break
            rows, inside, x, target, residual, direction, square = (
                part[running] for part in (rows, inside, x, target, residual, direction, square)
            )
        image = apply(direction)
        length = torch.where(square > target, square / dot(direction, image).clamp_min(1e-30), 0.0)
        x, residual = x + length * direction, residual - length * image
        before, square = square, torch.where(square > target, dot(residual, residual), square)
        direction = residual + square / before.clamp_min(1e-30) * direction
    else:
        solved[rows] = x
    return (known + solved).view(shape)


@functools.cache
def _bending_energy(height: int, width: int) -> scipy.sparse.csr_array:
    """The quadratic form Σ x_uu² + 2 x_uv² + x_vv² of images of this size, by finite differences inside the image: what
    is linear costs nothing."""

    def difference(size: int, order: int) -> scipy.sparse.csr_array:
        weights = {1: [-1.0, 1.0], 2: [1.0, -2.0, 1.0]}[order]
        return scipy.sparse.diags_array(weights, offsets=range(order + 1), shape=(size - order, size)).tocsr()

    rows, columns = scipy.sparse.eye_array(height), scipy.sparse.eye_array(width)
    parts = [
        scipy.sparse.kron(difference(height, 2), columns),
        math.sqrt(2) * scipy.sparse.kron(difference(height, 1), difference(width, 1)),
        scipy.sparse.kron(rows, difference(width, 2)),
    ]
    return sum(part.T @ part for part in parts).tocsr()

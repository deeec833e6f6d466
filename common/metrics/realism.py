"""Realism: unbiased kernel distance (KID) in the features of a net that judges nothing else (MEASUREMENT: realism).

    KID = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2 mean k(x_i, y_j),     k(a, b) = (a·b/d + 1)³

Bińkowski, Sutherland, Arbel and Gretton (ICLR 2018). It may be negative: its expectation is 0 where both distributions
agree. Intervals come from half-samples without replacement: a half-sample estimate scatters about the full one as that
does about the truth.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

HALVES = 400


class Features:
    """Standardised activations before the last layer of a `Classifier` around an `nn.Sequential`: the features of a
    small net have no scale of their own, so each gets mean 0 and deviation 1 on `images`, which enter no comparison."""

    def __init__(self, network: nn.Module, images: Tensor):
        self.network, self.mean, self.std = network, 0.0, 1.0
        found = self(images)
        self.mean, self.std = found.mean(0), found.std(0).clamp_min(1e-6)

    def __call__(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """N×d float64 features of N×C×H×W images."""
        body = self.network.network[:-1]
        with torch.no_grad():
            parts = [body((x - self.network.mean) / self.network.std) for x in images.split(batch_size)]
        return (torch.cat(parts).double() - self.mean) / self.std


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x·y/d + 1)³ for N×d and M×d features: N×M."""
    return (x @ y.T / x.shape[1] + 1) ** 3


@dataclass(frozen=True)
class Halves:
    """Indicators (R+1)×N and (R+1)×M of half-samples of the generated and the reference set; row 0 takes everything.

    The same halves serve every cell with N images, so that differences between cells are paired.
    """

    generated: Tensor
    reference: Tensor

    @classmethod
    def draw(cls, n: int, m: int, replicates: int = HALVES, key: int = 0) -> "Halves":
        """Seeded half-samples without replacement of n generated and m reference images."""
        rng = np.random.Generator(np.random.Philox(key=key))

        def indicators(size: int) -> Tensor:
            chosen = rng.random((replicates, size)).argsort(1) < size // 2
            return torch.cat([torch.ones(1, size, dtype=torch.float64), torch.from_numpy(chosen).double()])

        return cls(indicators(n), indicators(m))


class Reference:
    """The real images that generated ones are held against: M×d features and their half-sample self-similarities."""

    def __init__(self, real: Tensor, halves: Halves):
        self.real, self.halves = real, halves
        self.within = _mean_off_diagonal(polynomial_kernel(real, real), halves.reference)

    def kid(self, generated: Tensor) -> Tensor:
        """R+1 unbiased estimates for N×d features: of everything, then of each pair of halves."""
        mine, theirs = self.halves.generated, self.halves.reference
        within = _mean_off_diagonal(polynomial_kernel(generated, generated), mine)
        across = ((mine @ polynomial_kernel(generated, self.real)) * theirs).sum(1) / (mine.sum(1) * theirs.sum(1))
        return within + self.within - 2 * across


def _mean_off_diagonal(kernel: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the kernel over ordered pairs of different chosen items, per row of the indicators."""
    size = chosen.sum(1)
    total = ((chosen @ kernel) * chosen).sum(1) - chosen @ kernel.diagonal()
    return total / (size * (size - 1))

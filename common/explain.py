"""The contract every method keeps: what goes in, what comes out, where randomness comes from, who leaves the batch.

    explain(images, source, target, *, classifier, rng, strengths, callback=None) -> CounterfactualBatch

`images` is N×C×H×W in [0, 1]; `source` and `target` are N class indices; `classifier` maps images to logits; `rng` is
the `Streams` of these samples; `strengths` are up to 8 values along the method's own path (radii, iterates, ...);
`callback(dict)` sees tensors of the running optimisation and must not change them.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from common.errors import VceError

MAX_STRENGTHS = 8
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Streams:
    """One counter-based (Philox) random stream per sample, keyed by (seed, image id, target, purpose).

    A draw depends on its key alone: bit-identical whatever the batch, its order or its split.
    """

    seed: int
    image_ids: tuple[str, ...]
    targets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, rows: Sequence[int]) -> "Streams":
        """The streams of a subset of samples, in the given order."""
        return Streams(self.seed, tuple(self.image_ids[i] for i in rows), tuple(self.targets[i] for i in rows))

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """N×shape float32 standard normal draws."""
        return self._draw(lambda generator: generator.standard_normal(shape, dtype=np.float32), purpose)

    def uniform(self, shape: Sequence[int], purpose: str) -> Tensor:
        """N×shape float32 draws, uniform in [0, 1)."""
        return self._draw(lambda generator: generator.random(shape, dtype=np.float32), purpose)

    def _draw(self, sample: Callable[[np.random.Generator], np.ndarray], purpose: str) -> Tensor:
        return torch.from_numpy(np.stack([sample(generator) for generator in self._generators(purpose)]))

    def _generators(self, purpose: str):
        for image_id, target in zip(self.image_ids, self.targets, strict=True):
            key = hashlib.blake2b(f"{self.seed}|{image_id}|{target}|{purpose}".encode(), digest_size=16).digest()
            yield np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


@dataclass(frozen=True)
class CounterfactualBatch:
    """A path of S counterfactuals for each of N samples.

    images N×S×C×H×W in [0, 1]; log_confidence N×S, log p_f(target); distance N×S, mean |x' − x| over all colour values;
    status N×S names from `STATUSES`; steps, forward and backward N×S counts (forward + backward passes are the NFE);
    saliency N×H×W and latent_shift N×S×latent where a method has them; reference N×C×H×W is the picture that the
    method's own change starts from where that is not the original: its reconstruction.
    """

    images: Tensor
    strengths: tuple[float, ...]
    log_confidence: Tensor
    distance: Tensor
    status: np.ndarray
    steps: Tensor
    forward: Tensor
    backward: Tensor
    saliency: Tensor | None = None
    latent_shift: Tensor | None = None
    reference: Tensor | None = None

    @property
    def confidence(self) -> Tensor:
        """p_f(target), N×S."""
        return self.log_confidence.exp()

    def first_success(self, level: float) -> Tensor:
        """N positions on the paths: the first image with p_f(target) ≥ `level`, else the last."""
        above = self.confidence >= level
        return torch.where(above.any(1), above.int().argmax(1), above.shape[1] - 1)

    def at(self, position: Tensor) -> Tensor:
        """The images N×C×H×W at one position of each path."""
        return self.images[torch.arange(len(position)), position]

    def __post_init__(self):
        n, s = self.images.shape[:2]
        if not 1 <= s <= MAX_STRENGTHS:
            raise VceError(f"strengths: a path has 1 to {MAX_STRENGTHS} images, not {s}")
        for item in fields(self):
            value = getattr(self, item.name)
            if (
                isinstance(value, Tensor | np.ndarray)
                and item.name not in ("images", "saliency", "reference")
                and value.shape[:2] != (n, s)
            ):
                raise VceError(f"{item.name}: expected shape ({n}, {s}, ...), got {tuple(value.shape)}")


class Explainer(Protocol):
    """A visual counterfactual method."""

    def __call__(
        self,
        images: Tensor,
        source: Tensor,
        target: Tensor,
        *,
        classifier: torch.nn.Module,
        rng: Streams,
        strengths: Sequence[float],
        callback: Callable[[dict], None] | None = None,
    ) -> CounterfactualBatch: ...


def log_confidence(classifier: torch.nn.Module, target: Tensor) -> Objective:
    """The objective log p_f(target | x) and its gradient, in one forward and one backward pass.

    Returns `value_and_grad(x, rows)`: `x` is M×C×H×W, `rows` the M sample numbers that pick their targets; the answer
    is (M log-confidences, M×C×H×W gradients), both detached.
    """

    def value_and_grad(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            log_p = classifier(x).log_softmax(1).gather(1, target[rows, None])[:, 0]
            (gradient,) = torch.autograd.grad(log_p.sum(), x)
        return log_p.detach(), gradient

    return value_and_grad


class ActiveSet:
    """The samples still running, compacted in power-of-two buckets so that kernels see few batch shapes.

    `rows` holds the sample numbers in the working batch. `compact` costs one host synchronisation, so call it at
    checkpoints, not at every step.
    """

    def __init__(self, n: int, device: torch.device | str = "cpu"):
        self.rows = torch.arange(n, device=device)

    def compact(self, finished: Tensor) -> Tensor | None:
        """Positions of the working batch to keep, or None when it stays as it is.

        `finished` is a boolean per row of the working batch. Finished rows pad the batch to a power of two; an empty
        answer means that all have finished.
        """
        running = int((~finished).sum())
        bucket = 1 << (running - 1).bit_length() if running else 0
        if bucket >= len(finished):
            return None
        keep = torch.argsort(finished.int(), stable=True)[:bucket]
        self.rows = self.rows[keep]
        return keep


def finish(
    original: Tensor,
    images: Tensor,
    target: Tensor,
    *,
    classifier: torch.nn.Module,
    strengths: Sequence[float],
    diverged: Tensor | None = None,
    steps: Tensor | None = None,
    passes: tuple[Tensor, Tensor] | None = None,
    batch_size: int = 64,
) -> CounterfactualBatch:
    """The batch of finished paths `images` N×S×C×H×W: confidence, distance and status in one pass of the classifier.

    `diverged` (N×S) marks samples that hold their last finite image; where the classifier's answer is not a number the
    status is `diverged` too, and the confidence 0. `steps` and `passes` (forward, backward; N×S each) are what the
    search cost; zero for a path that was not searched.
    """
    n, s = images.shape[:2]
    none = torch.zeros(n, s, dtype=torch.long)
    with torch.no_grad():
        log_p = torch.cat([classifier(x).log_softmax(1) for x in images.flatten(0, 1).split(batch_size)]).view(n, s, -1)
    failed = log_p.isnan().any(2)
    status = np.where(log_p.argmax(2).numpy() == target[:, None].numpy(), "ok", "not_flipped")
    forward, backward = passes or (none, none)
    return CounterfactualBatch(
        images=images,
        strengths=tuple(strengths),
        log_confidence=log_p.gather(2, target[:, None, None].expand(n, s, 1))[..., 0].masked_fill(failed, -torch.inf),
        distance=(images - original[:, None]).abs().flatten(2).mean(2),
        status=np.where((failed if diverged is None else failed | diverged).numpy(), "diverged", status),
        steps=none if steps is None else steps,
        forward=forward,
        backward=backward,
    )

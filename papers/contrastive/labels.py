"""What classifiers say of an image, as the N×m logits that a shift is trained on: some classes against the rest,
averaged over transforms that change no label (contrastive spec, correction 3)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (rows, columns, mirrored): what moves a face by a pixel and turns it over leaves its labels
TRANSFORMS = tuple((dy, dx, flip) for flip in (False, True) for dy in (-1, 1) for dx in (-1, 1))


def against_rest(logits: Tensor, classes: tuple[int, ...]) -> Tensor:
    """N log-odds of some of the K classes: logsumexp of their logits − logsumexp of the others'."""
    chosen = torch.zeros(logits.shape[1], dtype=torch.bool).index_fill(0, torch.tensor(classes), True)
    return logits[:, chosen].logsumexp(1) - logits[:, ~chosen].logsumexp(1)


def transformed(images: Tensor, dy: int, dx: int, flip: bool) -> Tensor:
    """N×C×H×W images moved by whole pixels, the edge repeated, then mirrored."""
    padded = F.pad(images, (max(dx, 0), max(-dx, 0), max(dy, 0), max(-dy, 0)), mode="replicate")
    height, width = images.shape[2:]
    moved = padded[:, :, max(-dy, 0) : max(-dy, 0) + height, max(-dx, 0) : max(-dx, 0) + width]
    return moved.flip(3) if flip else moved


@dataclass(frozen=True)
class Labels:
    """m labels of images by their `names`: of each classifier some classes against the rest, N×m logits."""

    names: tuple[str, ...]
    classifiers: tuple[tuple[nn.Module, tuple[int, ...]], ...]

    def __call__(self, images: Tensor) -> Tensor:
        return torch.stack([against_rest(f(images), classes) for f, classes in self.classifiers], 1)

    def averaged(self, images: Tensor) -> Tensor:
        """The mean logits over `TRANSFORMS`: the label that is reported."""
        return torch.stack([self(transformed(images, *how)) for how in TRANSFORMS]).mean(0)

    def at_random(self, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """The labels under one of `TRANSFORMS`, drawn at every call: unbiased for the mean at an eighth of its cost."""

        def labels(images: Tensor) -> Tensor:
            how = TRANSFORMS[int(torch.randint(len(TRANSFORMS), (), generator=generator))]
            return self(transformed(images, *how))

        return labels

"""What classifiers say of an image, as the N×m logits that a shift is trained on: some classes against the rest,
averaged over transforms that change no label (contrastive spec, correction 3)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (rows, columns, mirrored): what moves a face by a pixel and turns it over leaves its labels
TRANSFORMS = tuple((dy, dx, flip) for flip in (False, True) for dy in (-1, 1) for dx in (-1, 1))
AS_IT_IS = (0, 0, False)


def transformed(images: Tensor, dy: int, dx: int, flip: bool) -> Tensor:
    """N×C×H×W images moved by whole pixels, the edge repeated, then mirrored."""
    padded = F.pad(images, (max(dx, 0), max(-dx, 0), max(dy, 0), max(-dy, 0)), mode="replicate")
    height, width = images.shape[2:]
    moved = padded[:, :, max(-dy, 0) : max(-dy, 0) + height, max(-dx, 0) : max(-dx, 0) + width]
    return moved.flip(3) if flip else moved


@dataclass(frozen=True)
class Labels:
    """m labels of images by their `names`. Each of the `networks` maps images to N×k logits, the log-odds of k labels;
    `transforms` are those that change none of them."""

    names: tuple[str, ...]
    networks: tuple[nn.Module, ...]
    transforms: tuple[tuple[int, int, bool], ...] = TRANSFORMS

    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([network(images) for network in self.networks], 1)

    def averaged(self, images: Tensor) -> Tensor:
        """The mean logits over the transforms, N×m: the label that is reported."""
        return torch.stack([self(transformed(images, *how)) for how in self.transforms or (AS_IT_IS,)]).mean(0)

    def at_random(self, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """The labels under one of the transforms, drawn at every call: unbiased for the mean at a fraction of its
        cost."""
        if not self.transforms:
            return self

        def labels(images: Tensor) -> Tensor:
            how = self.transforms[int(torch.randint(len(self.transforms), (), generator=generator))]
            return self(transformed(images, *how))

        return labels


class AgainstRest(nn.Module):
    """One label of a classifier with K classes: some of them against the others, N×1 log-odds."""

    def __init__(self, classifier: nn.Module, classes: tuple[int, ...]):
        super().__init__()
        self.classifier, self.classes = classifier, classes

    def forward(self, images: Tensor) -> Tensor:
        logits = self.classifier(images)
        chosen = torch.zeros(logits.shape[1], dtype=torch.bool).index_fill(0, torch.tensor(self.classes), True)
        return (logits[:, chosen].logsumexp(1) - logits[:, ~chosen].logsumexp(1))[:, None]


class Binary(nn.Module):
    """Some labels of a network that has two logits for each of its K, N×2×K: N×k log-odds of the `chosen` ones."""

    def __init__(self, network: nn.Module, chosen: tuple[int, ...] | slice = slice(None)):
        super().__init__()
        self.network, self.chosen = network, list(chosen) if isinstance(chosen, tuple) else chosen

    def forward(self, images: Tensor) -> Tensor:
        absent, present = self.network(images).unbind(1)
        return (present - absent)[:, self.chosen]

"""Ψ_l: the activations of a classifier's named layers, in the same pass as its logits (DISC spec §2.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.errors import VceError


class Layers:
    """`model(images)` gives N×K logits, the activations Ψ_l of `names` in that order, and those of `also`, which an
    auxiliary reads.

    By default `names` are the last convolution at each spatial size, found by one pass of a grey image; none for a
    classifier without convolutions, whose semantics are then its pixels. Raises VceError naming a layer that does not
    exist, with some that do.
    """

    def __init__(
        self,
        classifier: nn.Module,
        image_shape: tuple[int, int, int],
        names: Sequence[str] | None = None,
        also: Sequence[str] = (),
    ):
        self.classifier, known = classifier, dict(classifier.named_modules())
        self.names = tuple(_convolutions(classifier, image_shape) if names is None else names)
        for name in (*self.names, *also):
            if not name or name not in known:
                some = [other for other, module in known.items() if isinstance(module, nn.Conv2d)][:6]
                raise VceError(f"layers: the classifier has no layer {name!r}; its convolutions are {', '.join(some)}")
        self.modules = [known[name] for name in (*self.names, *also)]

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        found: dict[int, Tensor] = {}
        handles = [
            module.register_forward_hook(lambda _, __, out, k=k: found.__setitem__(k, out))
            for k, module in enumerate(self.modules)
        ]
        try:
            logits = self.classifier(images)
        finally:
            for handle in handles:
                handle.remove()
        activations = [found[k] for k in range(len(self.modules))]
        return logits, activations[: len(self.names)], activations[len(self.names) :]


def _convolutions(classifier: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    last: dict[tuple[int, ...], str] = {}
    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: last.__setitem__(tuple(out.shape[2:]), name))
        for name, module in classifier.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            classifier(torch.full((1, *image_shape), 0.5))
    finally:
        for handle in handles:
            handle.remove()
    return list(last.values())

"""Ψ_l: the activations of a classifier's named layers, in the same pass as its logits (DISC spec §2.2)."""

from collections.abc import Hashable, Sequence

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
        logits, found = _listened(self.classifier, dict(enumerate(self.modules)), images)
        activations = [found[k] for k in range(len(self.modules))]
        return logits, activations[: len(self.names)], activations[len(self.names) :]


def _listened(
    classifier: nn.Module, modules: dict[Hashable, nn.Module], images: Tensor
) -> tuple[Tensor, dict[Hashable, Tensor]]:
    """The logits of a pass, and the output of every module that it ran through, in the order of the pass."""
    found: dict[Hashable, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, __, out, key=key: found.__setitem__(key, out))
        for key, module in modules.items()
    ]
    try:
        return classifier(images), found
    finally:
        for handle in handles:
            handle.remove()


def _convolutions(classifier: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    convolutions = {name: module for name, module in classifier.named_modules() if isinstance(module, nn.Conv2d)}
    with torch.no_grad():
        _, found = _listened(classifier, convolutions, torch.full((1, *image_shape), 0.5))
    return list({tuple(out.shape[2:]): name for name, out in found.items()}.values())

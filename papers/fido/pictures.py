"""A saliency map over its image."""

import numpy as np
from torch import Tensor

RED = np.array([0.85, 0.1, 0.1])


def overlay(image: Tensor, saliency: Tensor) -> np.ndarray:
    """A map H×W in red over the grey image C×H×W, as H×W×3: the redder, the more a pixel matters, from
    the least value of the map to its greatest."""
    lowest, span = saliency.min(), (saliency.max() - saliency.min()).clamp_min(1e-6)
    grey = image.mean(0).numpy()[..., None].repeat(3, 2) * 0.8 + 0.2
    weight = 0.85 * ((saliency - lowest) / span).numpy()[..., None]
    return grey * (1 - weight) + RED * weight

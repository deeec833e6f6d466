"""How large, how sparse and where a change δ = x′ − x is. Every function maps N×C×H×W to N numbers."""

import torch
from torch import Tensor

VISIBLE = 0.1  # a pixel counts as changed when Σ_c |δ| exceeds this (SVCE spec §5.6)


def lp_norm(delta: Tensor, p: float) -> Tensor:
    """‖δ‖_p over all colour values."""
    return delta.flatten(1).norm(p=p, dim=1)


def hoyer(delta: Tensor) -> Tensor:
    """Hoyer sparsity (√d − ‖δ‖₁/‖δ‖₂)/(√d − 1) in [0, 1]: 0 for a constant, 1 for one colour value; NaN for δ = 0."""
    flat = delta.flatten(1)
    root = flat.shape[1] ** 0.5
    return (root - flat.norm(p=1, dim=1) / flat.norm(dim=1)) / (root - 1)


def gini(delta: Tensor) -> Tensor:
    """Gini index of |δ| in [0, 1): 0 for a constant, 1 − 1/d for a single colour value; NaN for δ = 0."""
    ascending = delta.flatten(1).abs().sort(1).values
    d = ascending.shape[1]
    rank = torch.arange(1, d + 1, dtype=ascending.dtype)
    return 1 - 2 * ((ascending / ascending.sum(1, keepdim=True)) * ((d - rank + 0.5) / d)).sum(1)


def pixel_share(delta: Tensor, threshold: float = VISIBLE) -> Tensor:
    """Share of pixels whose change summed over channels exceeds `threshold`."""
    return (pixel_change(delta) > threshold).float().flatten(1).mean(1)


def on_mask(delta: Tensor, mask: Tensor) -> Tensor:
    """Share of the l1 mass of δ on the object, `mask` N×H×W in [0, 1]; NaN for δ = 0. Chance is the mask's area."""
    change = pixel_change(delta)
    return (change * mask).flatten(1).sum(1) / change.flatten(1).sum(1)


def pixel_change(delta: Tensor) -> Tensor:
    """Σ_c |δ|: N×H×W. Channels are not summed with sign, so that a change of hue does not cancel."""
    return delta.abs().sum(1)

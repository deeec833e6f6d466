"""What only a rendered world can tell: the distance to the exact twin (MEASUREMENT G1)."""

from torch import Tensor


def twin_error(images: Tensor, original: Tensor, twin: Tensor) -> Tensor:
    """‖x′ − x*‖₂ / ‖x − x*‖₂ for N×C×H×W images: 1 for doing nothing, 0 for the twin x* itself."""
    return (images - twin).flatten(1).norm(dim=1) / (original - twin).flatten(1).norm(dim=1)


def factor_progress(images: Tensor, original: Tensor, twin: Tensor) -> Tensor:
    """π = ⟨x′ − x, x* − x⟩ / ‖x* − x‖²: near 0 for a random change, 1 for the twin."""
    direction = (twin - original).flatten(1)
    return ((images - original).flatten(1) * direction).sum(1) / direction.square().sum(1)

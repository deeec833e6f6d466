"""Maps that FIDO is held against: boxes that look at nothing, gradients, masks of other methods (FIDO spec §3, §5).

Every map is N×H×W, larger where a pixel matters more.
"""

import torch
from torch import Tensor, nn

from common.generators.infill import Infill
from papers.fido.explain import class_score
from papers.fido.method import Score, upsample
from papers.fido.regions import box_masks, centre_boxes

RISE_MASKS, RISE_CELLS = 500, 8
EXTREMAL_STEPS = 100
COSTS = {
    "gradient": (1, 1, 1),
    "rise": (0, RISE_MASKS, 0),
    "extremal": (EXTREMAL_STEPS, EXTREMAL_STEPS + 1, EXTREMAL_STEPS + 1),
}
GROWTH = 300 * 1.0035**800  # of the area term's weight, from 300 over the 800 steps of the published schedule


def whole(images: Tensor) -> Tensor:
    """Max: every pixel matters."""
    return images.new_ones(len(images), *images.shape[2:])


def centre(images: Tensor) -> Tensor:
    """Center: a centred box of half the area."""
    return box_masks(centre_boxes(len(images), *images.shape[2:]), *images.shape[2:])


def gradient_times_input(images: Tensor, c: Tensor, classifier: nn.Module) -> Tensor:
    """|Σ_colours x ∂s/∂x|."""
    x = images.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(class_score(classifier, c)(x[:, None]).sum(), x)
    return (images * gradient).sum(1).abs()


def rise(images: Tensor, c: Tensor, classifier: nn.Module, colour: Tensor) -> Tensor:
    """RISE (Petsiuk et al., BMVC 2018): at every pixel the mean p(c) of what random smooth masks leave of the image on
    a ground of `colour` (C), each weighed by how much of the pixel it keeps. The same masks for every image: cells an
    eighth of it, half of them kept, upsampled, shifted."""
    generator = torch.Generator().manual_seed(0)
    height, width = images.shape[2:]
    cells = (torch.rand(RISE_MASKS, 1, RISE_CELLS + 1, RISE_CELLS + 1, generator=generator) < 0.5).float()
    step = (-(-height // RISE_CELLS), -(-width // RISE_CELLS))
    large = upsample(cells, ((RISE_CELLS + 1) * step[0], (RISE_CELLS + 1) * step[1]))
    dy, dx = (torch.randint(0, step[axis], (RISE_MASKS, 1), generator=generator) for axis in (0, 1))
    rows, columns = dy + torch.arange(height), dx + torch.arange(width)
    masks = large[torch.arange(RISE_MASKS)[:, None, None], rows[:, :, None], columns[:, None, :]]
    found = []
    with torch.no_grad():
        for image, label in zip(images, c, strict=True):  # every pass is a batch of all masks
            mixed = torch.lerp(colour.view(-1, 1, 1), image, masks[:, None])
            found.append(torch.einsum("m,mhw->hw", classifier(mixed).softmax(1)[:, label], masks) / masks.sum(0))
    return torch.stack(found)


def extremal(
    x: Tensor,
    score: Score,
    G: Infill,
    area: float,
    steps: int = EXTREMAL_STEPS,
    grid: int = 8,
    learning_rate: float = 0.05,
) -> Tensor:
    """The mask of a given `area` (share of pixels) that keeps the class best, over a constant in-fill (Fong et al.,
    ICCV 2019): s(m⊙x + (1−m)⊙x̂) − w‖sorted(m) − r‖², where r is 0 and then 1 on the last `area` of pixels, and w
    grows from 300 as far as in the published 800 steps. Adam on a bilinear grid instead of a smooth maximum. It starts
    at ½ plus the gradient of s, scaled to a tenth: of an even mask, the order of the pixels would say which to drop."""
    height, width = x.shape[2:]
    x_hat = G(x, x.new_zeros(len(x), 1, height, width), None)[:, 0]

    def kept(m: Tensor) -> Tensor:
        return score(torch.lerp(x_hat, x, m[:, None])[:, None])[:, 0]

    even = torch.full((len(x), 1, grid, grid), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(kept(upsample(even, (height, width))).sum(), even)
    largest = gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    cells = (even.detach() + 0.1 * gradient / largest).requires_grad_()
    adam = torch.optim.Adam([cells], learning_rate, fused=True)
    reference = (torch.arange(height * width) >= (1 - area) * height * width).float()
    for t in range(steps):
        m = upsample(cells, (height, width))
        misfit = (m.flatten(1).sort(1).values - reference).square().mean(1)
        weight = 300 * (GROWTH / 300) ** (t / steps)
        adam.zero_grad()
        (weight * misfit - kept(m)).sum().backward()
        adam.step()
        cells.data.clamp_(0, 1)
    return upsample(cells.detach(), (height, width))

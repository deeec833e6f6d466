"""From saliency maps to regions: pixels in order, masks of the most salient ones, bounding boxes and their crops.

Maps are N×H×W; a box is (top, left, bottom, right) in pixels, half-open.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.explain import Streams

SALIENT = 0.5  # θ above which a pixel belongs to the MAP mask
AREA = 0.1  # of the image: the matched area
UNBOUNDED = ("gradient", "rise", "random")  # maps without a threshold of their own: their mask is the matched area


def ranks(saliency: Tensor, rng: Streams) -> Tensor:
    """N×H×W places from 0, the most salient pixel, to H·W − 1; equal values in random order: saturated maps are full of
    them."""
    shuffled = rng.uniform((saliency[0].numel(),), "ties").argsort(dim=1, stable=True)
    descending = saliency.flatten(1).gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    return shuffled.gather(1, descending).argsort(1).view_as(saliency)


def without_top(rank: Tensor, counts: Tensor) -> Tensor:
    """Keep masks N×K×H×W that drop the first `counts` (K, or N×K) pixels of each order."""
    return (rank[:, None] >= counts.expand(len(rank), -1)[..., None, None]).float()


def top_mask(rank: Tensor) -> Tensor:
    """N×H×W masks of the top `AREA` of the pixels of N×H×W `rank`."""
    return (rank < round(AREA * rank[0].numel())).float()


def map_mask(method: str, shown: Tensor, rank: Tensor) -> Tensor:
    """N×H×W masks of what a method's maps call salient: above ½, or the top `AREA` where it has no threshold."""
    return top_mask(rank) if method in UNBOUNDED else (shown > SALIENT).float()


def bounding_boxes(mask: Tensor) -> Tensor:
    """N×4 smallest boxes around all pixels of N×H×W masks; the full image where a mask is empty."""
    height, width = mask.shape[1:]
    edges = []
    for axis, size in ((2, height), (1, width)):
        inside = mask.any(axis).int()
        first, last = inside.argmax(1), size - inside.flip(1).argmax(1)
        edges.append((first, last))
    (top, bottom), (left, right) = edges
    return torch.stack([top, left, bottom, right], 1)


def centre_boxes(n: int, height: int, width: int) -> Tensor:
    """N×4 centred boxes of half the image's area: 158×158 of 224×224."""
    sides = [round(size / 2**0.5) for size in (height, width)]
    top, left = ((size - side) // 2 for size, side in zip((height, width), sides, strict=True))
    return torch.tensor([top, left, top + sides[0], left + sides[1]]).expand(n, 4)


def box_masks(boxes: Tensor, height: int, width: int) -> Tensor:
    """N×H×W masks, 1 inside the boxes."""
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
    top, left, bottom, right = boxes[:, :, None, None].unbind(1)
    return ((rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)).float()


def areas(boxes: Tensor) -> Tensor:
    """Pixels inside N boxes."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of N pairs of boxes."""
    corner, end = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (end - corner).clamp_min(0).prod(1)
    return shared / (areas(a) + areas(b) - shared)


def crop_and_upscale(images: Tensor, boxes: Tensor) -> Tensor:
    """The content of N boxes of at least a pixel, stretched to the full N×C×H×W, bilinear, as if cut out first: nothing
    outside of whole pixels is seen. The whole image comes back as it is."""
    size = torch.tensor(images.shape[2:])
    centre = (boxes[:, :2] + boxes[:, 2:]) / size - 1  # in [−1, 1], rows before columns
    scale = (boxes[:, 2:] - boxes[:, :2]) / size
    affine = torch.zeros(len(boxes), 2, 3)
    affine[:, 0, 0], affine[:, 1, 1] = scale[:, 1], scale[:, 0]
    affine[:, :, 2] = centre.flip(1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    reach = (scale - 1 / size).flip(1)  # from the centre to the middle of the first and the last pixel
    edges = ((centre.flip(1) + sign * reach)[:, None, None] for sign in (-1, 1))
    return F.grid_sample(images, grid.clamp(*edges), padding_mode="border", align_corners=False)

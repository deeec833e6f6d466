"""Cues that a classifier may pick up instead of the object: what they look like, where they sit, on whom they are
planted (SVCE spec §6, C10; MEASUREMENT: shortcuts).

A tile is pasted by the watermark formula x′ = (1 − α m) x + α m · colour, a cast by x′ = x + shift; both are clamped to
[0, 1]. Every cue has a *control patch*: equal mask and site, but its colour channels rotated (tile) or an orthogonal
shift of equal norm (cast), so that "any patch would do" can be told from "this cue does it".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import VceError
from common.explain import Streams

RATE = 0.8  # share of class-0 images that carry the cue
CARRIER = 0  # the class they belong to


@dataclass(frozen=True)
class Cue:
    """`mask` h×w in [0, 1], its opacity `alpha`, and the RGB `colour` of a tile at one of `places` (fractions of the
    free room, down and across). A cast has no mask: its `colour` is added to every pixel. `control` is the colour of
    the control patch."""

    name: str
    colour: tuple[float, float, float]
    control: tuple[float, float, float]
    mask: Tensor | None = None
    alpha: float = 1.0
    places: tuple[tuple[float, float], ...] = ((0.0, 0.0),)


TILE = torch.ones(6, 6)
YELLOW, CYAN = (1.0, 0.9, 0.2), (0.2, 1.0, 0.9)
CAST = 0.04
CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
CUES = {
    cue.name: cue
    for cue in (
        Cue("corner", YELLOW, CYAN, TILE, 0.8, CORNERS[3:]),
        Cue("sites", YELLOW, CYAN, TILE, 0.8, CORNERS),
        # ΔE ≈ 7 on grey: seen beside the uncued image, not alone, since objects vary by ±.15 per channel. Both shifts
        # have the same norm and keep the mean of the channels.
        Cue("hue", (CAST, -CAST / 2, -CAST / 2), (0.0, CAST * 0.75**0.5, -CAST * 0.75**0.5)),
    )
}


def find(name: str) -> Cue:
    """The cue called `name`. Raises VceError with the known names."""
    if name not in CUES:
        raise VceError(f"cue {name!r} is unknown; choose one of {', '.join(CUES)}")
    return CUES[name]


def sites(cue: str, height: int, width: int) -> list[tuple[int, int]]:
    """Top-left pixels at which the cue may sit; one site, (0, 0), for a cast, which fills the image.

    Raises VceError when the tile is larger than the image.
    """
    spec = find(cue)
    if spec.mask is None:
        return [(0, 0)]
    h, w = spec.mask.shape
    if h > height or w > width:
        raise VceError(f"cue {cue!r}: its {h}×{w} tile is larger than the {height}×{width} image; use larger images")
    return [(round(down * (height - h)), round(across * (width - w))) for down, across in spec.places]


def overlay(images: Tensor, cue: str, site: Tensor | int = 0, *, control: bool = False) -> Tensor:
    """The images N×3×H×W in [0, 1] with the cue, or its control patch, pasted on.

    `site` numbers `sites(cue, H, W)`, one for all or N of them. Raises VceError when the tile is larger than the image,
    or the images are not RGB.
    """
    spec = find(cue)
    if images.shape[1] != 3:
        raise VceError(f"cue {cue!r}: needs RGB images, got {images.shape[1]} channel(s)")
    colour = torch.tensor(spec.control if control else spec.colour)[:, None, None]
    cover = coverage(cue, *images.shape[2:])[site]
    if spec.mask is None:
        return (images + colour).clamp(0, 1)
    weight = spec.alpha * (cover[:, None] if cover.ndim == 3 else cover)
    return ((1 - weight) * images + weight * colour).clamp(0, 1)


def coverage(cue: str, height: int, width: int) -> Tensor:
    """The cue's mask m at every site, S×H×W in [0, 1]; 1 everywhere for a cast."""
    spec, places = find(cue), sites(cue, height, width)
    if spec.mask is None:
        return torch.ones(1, height, width)
    cover = torch.zeros(len(places), height, width)
    h, w = spec.mask.shape
    for canvas, (top, left) in zip(cover, places, strict=True):
        canvas[top : top + h, left : left + w] = spec.mask
    return cover


def planted(cue: str, ids: tuple[str, ...], labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Which images carry the cue (N bool: a share `RATE` of class `CARRIER`, none elsewhere), and at which site (N).

    The draw depends on (seed, id) alone and is the same for every cue.
    """
    draw = Streams(seed, ids, (0,) * len(ids)).uniform((2,), "cue")
    site = (draw[:, 1] * len(find(cue).places)).long()
    return (labels == CARRIER) & (draw[:, 0] < RATE), site

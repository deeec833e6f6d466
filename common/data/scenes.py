"""`scenes`: a rendered world of one textured object on clutter, with exact masks and exact twins.

The class is the object's texture (and a faint tint); everything else is a nuisance. An image is a deterministic
function of its factors, so the image with one factor changed and all others fixed (its *twin*) is exact, and so is the
mask.

Two variants share every factor but one: in `scenes` the background palette is independent of the class; in
`scenes-tied` it equals the class with probability .8, so that an explanation that moves the background can be right
about the classifier, and "object-centric" can be wrong. The worlds of `common.data.cues` render the factors of `scenes`
with two classes made alike.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from common.explain import Streams

CLASSES = ("vertical stripes", "horizontal stripes", "diagonal stripes", "rings", "checks")
SIZE = 32
TIED = 0.8
MODES = 6  # cosines per background
FAINT = 0.25  # contrast left to the textures of classes 0 and 1 where they are alike
TINT = torch.tensor([[1.0, 0.25, 0.2], [0.2, 0.85, 0.3], [0.25, 0.4, 1.0], [0.95, 0.8, 0.15], [0.8, 0.25, 0.9]])
# faint on purpose: a palette that fills the image and is easy to see leaves a robust net no reason to read the texture
PALETTE = torch.tensor([[0.47, 0.4, 0.38], [0.4, 0.44, 0.39], [0.4, 0.41, 0.46], [0.47, 0.45, 0.37], [0.46, 0.4, 0.44]])


@dataclass(frozen=True)
class Factors:
    """Everything that makes N images; each field is a tensor whose first dimension is N.

    label and palette: class index 0–4 · shape: 0 disc, 1 square, 2 diamond · centre N×2 and radius, in pixels ·
    period: of the texture, pixels · phase: radians · contrast: of the texture · colour N×3: object colour before tint ·
    light N×2: slope of the illumination · wave N×MODES×2, wave_phase N×MODES, amplitude N×MODES×3: the clutter.
    """

    label: Tensor
    palette: Tensor
    shape: Tensor
    centre: Tensor
    radius: Tensor
    period: Tensor
    phase: Tensor
    contrast: Tensor
    colour: Tensor
    light: Tensor
    wave: Tensor
    wave_phase: Tensor
    amplitude: Tensor

    def __getitem__(self, rows) -> "Factors":
        return Factors(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})


def sample(ids: tuple[str, ...], seed: int, *, tied: bool) -> Factors:
    """Factors of the images with these ids; the same (id, seed) gives the same image in any batch, and both variants
    share all factors but the palette."""
    draws = Streams(seed, ids, (0,) * len(ids)).uniform((16 + MODES * 6,), "scene")
    one, modes = draws[:, :16], draws[:, 16:].view(len(ids), MODES, 6)

    def between(column: int, low: float, high: float) -> Tensor:
        return low + (high - low) * one[:, column]

    label = (one[:, 0] * len(CLASSES)).long()
    other = (label + 1 + (one[:, 2] * (len(CLASSES) - 1)).long()) % len(CLASSES)
    palette = torch.where(one[:, 1] < TIED, label, other) if tied else (one[:, 1] * len(CLASSES)).long()
    return Factors(
        label=label,
        palette=palette,
        shape=(one[:, 3] * 3).long(),
        centre=SIZE / 2 + torch.stack([between(4, -5, 5), between(5, -5, 5)], 1),
        radius=between(6, 7.5, 10.0),
        period=between(7, 4.5, 6.5),
        phase=between(8, 0, 2 * math.pi),
        contrast=between(9, 0.05, 0.2),
        colour=0.35 + 0.3 * one[:, 10:13],
        light=torch.stack([between(13, -0.12, 0.12), between(14, -0.12, 0.12)], 1),
        wave=(modes[..., :2] - 0.5) * 8,
        wave_phase=modes[..., 2] * 2 * math.pi,
        amplitude=(modes[..., 3:6] - 0.5) * 0.2,
    )


def render(factors: Factors, *, alike: bool = False) -> tuple[Tensor, Tensor]:
    """Images N×3×32×32 in [0, 1] and the object's exact coverage masks N×32×32 in [0, 1].

    `alike` makes classes 0 and 1 hard to tell apart: one tint for both, and their textures at `FAINT` of the contrast.
    """
    axis = torch.arange(SIZE, dtype=torch.float32) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    dx = x - factors.centre[:, 0, None, None]
    dy = y - factors.centre[:, 1, None, None]
    mask = _coverage(factors, dx, dy)
    light = 1 + (factors.light[:, :, None, None] * torch.stack([dx, dy], 1) / SIZE * 2).sum(1)

    waves = torch.einsum("nmd,dhw->nmhw", factors.wave, torch.stack([x, y]) / SIZE) * 2 * math.pi
    clutter = torch.einsum("nmc,nmhw->nchw", factors.amplitude, (waves + factors.wave_phase[..., None, None]).cos())
    background = PALETTE[factors.palette][:, :, None, None] + clutter

    tint, contrast = TINT[factors.label], factors.contrast
    if alike:
        either = factors.label < 2
        tint = torch.where(either[:, None], TINT[:2].mean(0), tint)
        contrast = torch.where(either, FAINT * contrast, contrast)
    base = 0.9 * factors.colour + 0.1 * tint
    texture = contrast[:, None, None] * _texture(factors, dx, dy)
    body = base[:, :, None, None] + texture[:, None]
    cover = mask[:, None]
    return ((cover * body + (1 - cover) * background) * light[:, None]).clamp(0, 1), mask


def emptied(factors: Factors) -> Factors:
    """The same clutter and light without an object: a radius below zero covers no pixel."""
    return replace(factors, radius=torch.full_like(factors.radius, -1.0))


def twin(factors: Factors, label: Tensor) -> Factors:
    """The same scenes with the class factor set to `label` and every nuisance fixed."""
    return replace(factors, label=label)


def _coverage(factors: Factors, dx: Tensor, dy: Tensor) -> Tensor:
    """Share of each pixel that the object covers, by the signed distance to its outline (one-pixel ramp)."""
    disc = (dx.square() + dy.square()).sqrt()
    square = torch.maximum(dx.abs(), dy.abs()) * 1.13
    diamond = (dx.abs() + dy.abs()) * 0.8
    distance = torch.stack([disc, square, diamond], 1)
    distance = distance.gather(1, factors.shape[:, None, None, None].expand(-1, 1, SIZE, SIZE))[:, 0]
    return (factors.radius[:, None, None] - distance + 0.5).clamp(0, 1)


def _texture(factors: Factors, dx: Tensor, dy: Tensor) -> Tensor:
    """The class texture in [−1, 1], N×32×32; its phase moves with the object."""
    k = (2 * math.pi / factors.period)[:, None, None]
    phase = factors.phase[:, None, None]
    stripes = [
        (k * dx + phase).cos(),
        (k * dy + phase).cos(),
        (k * (dx + dy) / math.sqrt(2) + phase).cos(),
        (k * (dx.square() + dy.square()).sqrt() + phase).cos(),
        (0.7 * k * dx + phase).cos() * (0.7 * k * dy + phase).cos() * 1.4,
    ]
    chosen = torch.stack(stripes, 1).gather(1, factors.label[:, None, None, None].expand(-1, 1, SIZE, SIZE))[:, 0]
    return (2.5 * chosen).tanh()

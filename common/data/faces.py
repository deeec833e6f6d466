"""`faces`: a rendered world of face glyphs, one structural causal model over binary attributes and a renderer.

    old ~ B(.5)   gray | old ~ B(.1, .8)   glasses | old ~ B(.2, .6)   smile ~ B(.5)   mustache ~ B(.3)   bald ~ B(r)

Each attribute is 1 where its own uniform lies below its probability (monotone coupling), so an intervention keeps all
uniforms and its effect on an attribute's descendants is exact (contrastive counterfactuals, spec §9.1). `old` shows as
wrinkles alone; grey hair is a node of its own. An image is a deterministic function of attributes, how strongly each
shows, and nuisances, so the image with one attribute changed and all else fixed (its *twin*) is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from common.explain import Streams

SIZE = 32
FINE = 2  # drawn at twice the size and averaged
CHUNK = 64  # faces drawn at once: what fits the cache
ATTRIBUTES = ("old", "gray", "glasses", "smile", "mustache", "bald")
PARENTS = {"gray": "old", "glasses": "old"}
# P(attribute = 1), or P(attribute = 1 | parent = 0, 1)
PROBABILITY = {"old": 0.5, "gray": (0.1, 0.8), "glasses": (0.2, 0.6), "smile": 0.5, "mustache": 0.3}
BALD = 0.3  # bald hides the hair's colour: 0 wherever grey hair has to be seen
NOISE = 0.02


@dataclass(frozen=True)
class Factors:
    """Everything that makes N faces; the first dimension of each field is N.

    attributes N×6 in the order of `ATTRIBUTES`, 0 or 1, and uniforms N×6, what they were drawn from · lines: a draw in
    [0, 1), how strongly age or youth shows · curvature: of the mouth, its size; a smile turns its corners up · centre
    N×2 and scale of the face · skin, hair, background N×3 colours · slope N×2×3: gradient of the background · eyes:
    their size · gaze: N×2 · noise N×3×32×32.
    """

    attributes: Tensor
    uniforms: Tensor
    lines: Tensor
    curvature: Tensor
    centre: Tensor
    scale: Tensor
    skin: Tensor
    hair: Tensor
    background: Tensor
    slope: Tensor
    eyes: Tensor
    gaze: Tensor
    noise: Tensor

    def __getitem__(self, rows) -> "Factors":
        return Factors(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})

    @property
    def wrinkles(self) -> Tensor:
        """N depths: .55 to 1 of the old, 0 to .25 of the young; a twin shows age as strongly as its original youth."""
        return torch.where(self.attribute("old") == 1, 0.55 + 0.45 * self.lines, 0.25 * self.lines)

    def attribute(self, name: str) -> Tensor:
        """N values, 0 or 1."""
        return self.attributes[:, ATTRIBUTES.index(name)]


def propagate(uniforms: Tensor, do: Mapping[str, Tensor | int] | None = None, bald: float = BALD) -> Tensor:
    """The structural model: N×6 attributes from their N×6 uniforms, with the attributes in `do` set to N values or to
    one, whatever their parents are."""
    found: dict[str, Tensor] = {}
    for k, name in enumerate(ATTRIBUTES):
        if do and name in do:
            found[name] = torch.as_tensor(do[name], dtype=torch.long).expand(len(uniforms))
            continue
        p = bald if name == "bald" else PROBABILITY[name]
        if name in PARENTS:
            p = torch.tensor(p, dtype=uniforms.dtype)[found[PARENTS[name]]]
        found[name] = (uniforms[:, k] < p).long()
    return torch.stack([found[name] for name in ATTRIBUTES], 1)


def sample(ids: tuple[str, ...], seed: int, *, bald: float = BALD) -> Factors:
    """Factors of the faces with these ids; the same (id, seed) gives the same face in any batch, and worlds that differ
    in `bald` alone share all else."""
    streams = Streams(seed, ids, (0,) * len(ids))
    draws = streams.uniform((40,), "face")
    uniforms = draws[:, :6]
    attributes = propagate(uniforms, bald=bald)

    def between(column: int, low: float, high: float) -> Tensor:
        return low + (high - low) * draws[:, column]

    tone = between(13, 0.0, 1.0)[:, None]  # of the skin, from light to dark
    return Factors(
        attributes=attributes,
        uniforms=uniforms,
        lines=draws[:, 6],
        curvature=between(7, 0.5, 1.0),
        centre=SIZE / 2 + torch.stack([between(8, -2.0, 2.0), between(9, -1.0, 2.0)], 1),
        scale=between(10, 11.0, 12.5),
        skin=torch.tensor([0.93, 0.78, 0.66]) * (1 - tone) + torch.tensor([0.62, 0.45, 0.34]) * tone,
        hair=0.08 + 0.22 * draws[:, 14:15] * torch.tensor([1.0, 0.65, 0.4]) + 0.04 * draws[:, 15:18],
        background=0.25 + 0.5 * draws[:, 18:21],
        slope=0.25 * (draws[:, 21:27].view(-1, 2, 3) - 0.5),
        eyes=between(27, 0.85, 1.15),
        gaze=torch.stack([between(28, -0.05, 0.05), between(29, -0.03, 0.03)], 1),
        noise=NOISE * streams.normal((3, SIZE, SIZE), "noise"),
    )


def twin(factors: Factors, name: str, value: Tensor | int | None = None, *, descendants: bool = False) -> Factors:
    """The same faces under do(`name` = `value`), by default its opposite: every nuisance fixed and, unless
    `descendants` follow, every other attribute too."""
    value = 1 - factors.attribute(name) if value is None else torch.as_tensor(value).expand(len(factors.attributes))
    attributes = factors.attributes.clone()
    attributes[:, ATTRIBUTES.index(name)] = value
    if descendants:
        children = [ATTRIBUTES.index(child) for child, parent in PARENTS.items() if parent == name]
        attributes[:, children] = propagate(factors.uniforms, {name: value})[:, children]
    return replace(factors, attributes=attributes)


def render(factors: Factors) -> Tensor:
    """Faces N×3×32×32 in [0, 1]."""
    return torch.cat([_render(factors[rows]) for rows in torch.arange(len(factors.attributes)).split(CHUNK)])


def _render(factors: Factors) -> Tensor:
    axis = (torch.arange(SIZE * FINE, dtype=torch.float32) + 0.5) / FINE
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    scale = factors.scale[:, None, None]
    x = (right - factors.centre[:, 0, None, None]) / scale  # −1 to 1 across the head, growing to the right
    y = (down - factors.centre[:, 1, None, None]) / scale  # −1 to 1 from crown to chin
    pixel = 1 / scale

    def inside(signed: Tensor) -> Tensor:
        """Coverage in [0, 1] of the region where `signed` distance, in units of the head, is negative."""
        return (0.5 - signed / pixel).clamp(0, 1)[:, None]

    def colour(rgb: Tensor) -> Tensor:
        return rgb[:, :, None, None]

    def over(image: Tensor, cover: Tensor, rgb: Tensor) -> Tensor:
        return image + cover * (rgb - image)

    def shown(name: str) -> Tensor:
        return factors.attribute(name).float()[:, None, None, None]

    place = torch.stack([right, down]) / SIZE - 0.5
    image = colour(factors.background) + torch.einsum("nkc,khw->nchw", factors.slope, place)
    hair = torch.where(shown("gray") > 0, torch.tensor([0.80, 0.80, 0.83]).view(1, 3, 1, 1), colour(factors.hair))
    cap = inside(_ellipse(x, y + 0.08, 0.90, 1.04)) * inside(y - 0.10)
    image = over(image, cap * (1 - shown("bald")), hair)
    shade = 1 - 0.10 * (x.square() + (y - 0.1).square())[:, None]
    image = over(image, inside(_ellipse(x, y - 0.08, 0.76, 0.92)), colour(factors.skin) * shade)
    fringe = inside(_ellipse(x, y + 0.08, 0.90, 1.04)) * inside(y + 0.52 - 0.18 * x.square())
    image = over(image, fringe * (1 - shown("bald")), hair)

    dark = 0.5 * colour(factors.skin)
    folds = sum(inside(_stroke(x, y, side, 0.34, 0.10, 0.22, 0.50, 0.035)) for side in (-1, 1))
    brow = sum(inside((y - height).abs().maximum(x.abs() - 0.38 + 0.035) - 0.035) for height in (-0.44, -0.32))
    crow = sum(inside(_stroke(x, y, side, 0.60, -0.20, 0.70, 0.06, 0.03)) for side in (-1, 1))
    depth = factors.wrinkles[:, None, None, None]
    image = over(image, (folds + brow + crow).clamp(0, 1) * 0.75 * depth, dark)

    eyes = factors.eyes[:, None, None]
    for side in (-1, 1):
        white = inside(_ellipse(x - 0.30 * side, y + 0.10, 0.15 * eyes, 0.10 * eyes))
        image = over(image, white, torch.tensor(0.96))
        gaze = factors.gaze[..., None, None]
        pupil = inside(_ellipse(x - 0.30 * side - gaze[:, 0], y + 0.10 - gaze[:, 1], 0.065 * eyes, 0.08 * eyes))
        image = over(image, pupil, torch.tensor(0.06))
    frame = sum(inside(_ellipse(x - 0.31 * side, y + 0.09, 0.27, 0.23).abs() - 0.045) for side in (-1, 1))
    bridge = inside((y + 0.09).abs().maximum(x.abs() - 0.05) - 0.04)
    image = over(
        image, (frame + bridge).clamp(0, 1) * shown("glasses"), torch.tensor([0.1, 0.1, 0.18]).view(1, 3, 1, 1)
    )

    image = over(image, inside(_ellipse(x, y - 0.16, 0.06, 0.09)) * 0.5, dark)
    upwards = (2 * factors.attribute("smile").float() - 1)[:, None, None] * factors.curvature[:, None, None]
    lips = y - 0.56 + 0.22 * upwards * ((x / 0.36).square() - 0.4)
    mouth = inside(lips.abs().maximum(x.abs() - 0.36 + 0.06) - 0.06)
    image = over(image, mouth, torch.tensor([0.55, 0.14, 0.16]).view(1, 3, 1, 1))
    bar = inside((y - 0.33 - 0.25 * x.square()).abs().maximum(x.abs() - 0.30 + 0.06) - 0.06)
    image = over(image, bar * shown("mustache"), torch.tensor([0.14, 0.10, 0.08]).view(1, 3, 1, 1))
    small = torch.nn.functional.avg_pool2d(image, FINE)
    return (small + factors.noise).clamp(0, 1)


def difference_mask(images: Tensor, twins: Tensor) -> Tensor:
    """N×32×32, 1 where a face and its twin in one attribute, N×3×32×32 each, differ by more than half a grey level:
    where an explanation of that attribute belongs."""
    return ((images - twins).abs().amax(1) > 0.5 / 255).float()


def _ellipse(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """About the signed distance to the ellipse (x/a)² + (y/b)² = 1, negative inside."""
    level = ((x / a).square() + (y / b).square()).sqrt()
    return (level - 1) * (a * b) ** 0.5


def _stroke(x: Tensor, y: Tensor, side: int, x0: float, y0: float, x1: float, y1: float, half: float) -> Tensor:
    """Signed distance to a line of width 2·half from (side·x0, y0) to (side·x1, y1)."""
    ax, ay, dx, dy = side * x0, y0, side * (x1 - x0), y1 - y0
    along = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return ((x - ax - along * dx).square() + (y - ay - along * dy).square()).sqrt() - half

"""Does a text watermark turn photos into "Granny Smith" for a real ImageNet classifier (SVCE spec §6)?

Forward passes only, exploratory, without a verdict: the paper's masks were never released, and its counts are unknown.
The watermark is text drawn here, tiled on the diagonal; its control is the same mask with its blocks shuffled, so equal
in area and in every detail smaller than a block, but no text.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from common.data import registry
from common.data.images import load_image
from common.errors import VceError
from common.figures import image_grid, picture
from common.files import sha256
from common.progress import Progress

GRANNY_SMITH = 948
TEXT = "stock photo"
FONT_SIZE = 22  # pixels
ANGLE = 30  # degrees
BLOCK = 16  # pixels: smaller than a word, about the height of a letter
COLOURS = {"white": (1.0, 1.0, 1.0), "grey": (87 / 255, 91 / 255, 100 / 255)}
SHOWN = 3  # example photos in the figure


def text_mask(size: int) -> Tensor:
    """The watermark m, size×size in [0, 1]: `TEXT` in Pillow's own font, in rows along the diagonal."""
    side = 2 * size  # enough to fill the corners after the turn
    canvas = Image.new("L", (side, side))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    width = round(draw.textlength(TEXT, font)) + FONT_SIZE
    for row, top in enumerate(range(0, side, 2 * FONT_SIZE)):
        for left in range(-(row % 2) * width // 2, side, width):
            draw.text((left, top), TEXT, fill=255, font=font)
    turned = canvas.rotate(ANGLE, Image.Resampling.BICUBIC)
    corner = (side - size) // 2
    pixels = np.array(turned.crop((corner, corner, corner + size, corner + size)), dtype=np.float32)
    return torch.from_numpy(pixels / 255)


def shuffled_blocks(mask: Tensor, block: int, seed: int) -> Tensor:
    """The H×W mask cut into `block`×`block` squares that change places by a seeded draw.

    Raises VceError when the block does not divide the mask.
    """
    h, w = mask.shape
    if h % block or w % block:
        raise VceError(f"block: {block} does not divide the {h}×{w} mask; choose a common divisor")
    rows, columns = h // block, w // block
    blocks = mask.view(rows, block, columns, block).transpose(1, 2).reshape(-1, block, block)
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(blocks))
    blocks = blocks[torch.from_numpy(order)].view(rows, columns, block, block)
    return blocks.transpose(1, 2).reshape(h, w)


def masks(size: int) -> dict[str, Tensor]:
    """The text and its control, size×size each."""
    text = text_mask(size)
    return {"text": text, "shuffled": shuffled_blocks(text, BLOCK, seed=0)}


def watermark(images: Tensor, mask: Tensor, colour: tuple[float, ...], alpha: float) -> Tensor:
    """x′ = (1 − α m) x + α m · colour on images N×C×H×W in [0, 1]; the mask is H×W (§6)."""
    weight = alpha * mask
    return ((1 - weight) * images + weight * torch.tensor(colour)[:, None, None]).clamp(0, 1)


@torch.no_grad()
def probabilities(classifier: nn.Module, images: Tensor, batch_size: int = 20) -> Tensor:
    """Soft-max N×K, forward passes only."""
    return torch.cat([classifier(x).softmax(1) for x in images.split(batch_size)])


def effects(plain: Tensor, marked: Tensor, labels: Tensor) -> dict[str, float]:
    """What a watermark did to N photos, from soft-max N×K without and with it.

    n photos · `changed` predictions · `fake_granny_smith`: wrong predictions that equal class 948 · `p_granny_smith`:
    mean p(948) · `label_drop`: mean fall of p(label).
    """
    before, after = plain.argmax(1), marked.argmax(1)
    fake = (after == GRANNY_SMITH) & (labels != GRANNY_SMITH)
    drop = (plain - marked).gather(1, labels[:, None])
    return {
        "n": len(labels),
        "changed": int((before != after).sum()),
        "fake_granny_smith": int(fake.sum()),
        "p_granny_smith": marked[:, GRANNY_SMITH].mean().item(),
        "label_drop": drop.mean().item(),
    }


def photo_names(count: int) -> list[str]:
    """The first `count` labelled ImageNet photos. Raises VceError when there are fewer."""
    found = [name for name in registry.names() if name.startswith("imagenet_")]
    if not 1 <= count <= len(found):
        raise VceError(f"photos: {count} of {len(found)} packaged photos; ask for 1 to {len(found)}")
    return found[:count]


def measure(
    classifier: nn.Module, images: Tensor, labels: Tensor, alphas: list[float], progress: Progress
) -> tuple[pd.DataFrame, dict[tuple, Tensor]]:
    """One row per colour, mask and α beside the plain photos, and the soft-max N×K of every condition by its key."""
    plain = probabilities(classifier, images)
    seen = {("none", "none", 0.0): plain}
    progress.advance()
    for name, colour in COLOURS.items():
        for kind, mask in masks(images.shape[-1]).items():
            for alpha in alphas:
                seen[name, kind, alpha] = probabilities(classifier, watermark(images, mask, colour, alpha))
                progress.advance()
    rows = [{"colour": key[0], "mask": key[1], "alpha": key[2], **effects(plain, p, labels)} for key, p in seen.items()]
    return pd.DataFrame(rows), seen


def overlay_test(classifier: nn.Module, recipe: dict, data: Path) -> tuple[pd.DataFrame, Figure, dict]:
    """The test on the packaged photos in `data`: its table, a figure of the first few, and the figure's provenance.

    `recipe`: `alphas`, and `photos`, their number. Raises VceError for a number that is not there.
    """
    alphas = recipe["alphas"]
    paths = [data / name for name in photo_names(recipe["photos"])]
    images = torch.stack([load_image(path, classifier.image_shape) for path in paths])
    labels = torch.tensor([int(path.stem.split("_")[2]) for path in paths])
    with Progress("overlay", total=1 + 2 * len(COLOURS) * len(alphas), unit="conditions") as progress:
        table, seen = measure(classifier, images, labels, alphas, progress)
    lines, strongest = [[] for _ in images[:SHOWN]], max(alphas)
    versions = {"plain": (("none", "none", 0.0), images)}
    for kind, mask in masks(images.shape[-1]).items():
        versions[kind] = (("white", kind, strongest), watermark(images, mask, COLOURS["white"], strongest))
    labels_of = {"plain": "plain"} | {kind: f"white {kind}, α = {strongest:g}" for kind in versions if kind != "plain"}
    for kind, (key, shown) in versions.items():
        for line, image, answer in zip(lines, shown, seen[key], strict=False):
            line.append(
                (
                    picture(image),
                    f"{labels_of[kind]}: {classifier.class_names[int(answer.argmax())]} {answer.max():.2f}",
                )
            )
    names = [classifier.class_names[int(label)] for label in labels[:SHOWN]]
    facts = {"text": TEXT, "block": BLOCK, "alpha": strongest, **recipe}
    provenance = {"figure": "overlay", "recipe": facts, "inputs": {path.name: sha256(path) for path in paths}}
    return table, image_grid(lines, names, cell=2.2), provenance

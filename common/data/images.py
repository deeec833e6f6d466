"""A user's own image file in, a tensor out; and back. Bounded in memory whatever the file claims to be."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from common.errors import VceError
from common.files import atomic_path

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm")
MAX_PIXELS = 100_000_000  # decoded; measured: 0.6 GB, with transparency or EXIF rotation 1.2 GB, at most 7 s
CONTEXT = 256 / 224  # the usual ImageNet evaluation: short side to 256, centre crop of 224


def load_image(path: Path | str, shape: tuple[int, int, int]) -> Tensor:
    """Read any common image file as the float tensor C×H×W in [0, 1] that a classifier of input `shape` expects.

    Preprocessing: the EXIF rotation is applied, transparency is laid on white, the first frame of an animation is
    taken. The image is resized (bicubic, antialiased) until its short side is 256/224 of the classifier's side, and the
    centre H×W is cropped: the usual ImageNet evaluation. (The SVCE release instead squashed the whole image to 224×224,
    so radii and confidences differ slightly.) An image that has exactly the size H×W is taken as it is. A classifier of
    1 channel gets the luminance (ITU-R 601), a grey image for 3 channels is repeated.

    16-bit grey is divided by 65535. A large JPEG is decoded at a fraction of its size, never below 4 times what is
    needed. Raises VceError, one line naming the file and the fix, for a file that is missing, empty, truncated, no
    image, of an unknown pixel format, or larger than `MAX_PIXELS` once decoded.
    """
    path = Path(path)
    channels, height, width = shape
    with _reading(path), Image.open(path, formats=FORMATS) as image:
        pixels = image.width * image.height
        image.draft(None, (4 * max(height, width), 4 * max(height, width)))
        # A progressive JPEG keeps all its coefficients in memory, even when it is decoded at a fraction of its size.
        if "progressive" not in image.info:
            pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise VceError(
                f"{path}: {pixels // 10**6} megapixels, more than the {MAX_PIXELS // 10**6} that are decoded; "
                "scale the image down, or save it as a baseline JPEG"
            )
        pixels = _crop(_plain(ImageOps.exif_transpose(image), path), height, width)
        return _to_tensor(pixels, channels)


def save_image(tensor: Tensor, path: Path | str) -> None:
    """Write a C×H×W tensor in [0, 1] (1 or 3 channels) as an 8-bit PNG, whole or not at all.

    Values are rounded to the nearest of 256 levels. Raises VceError when the disk is full.
    """
    values = (tensor.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    with atomic_path(path) as temporary:
        Image.fromarray(values.squeeze(2) if values.shape[2] == 1 else values).save(temporary, format="PNG")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into one line; lift Pillow's own pixel limit, because ours replaces it."""
    try:
        head = _head(path)
    except OSError as error:
        raise VceError(f"{path}: {error.strerror}; name a readable image file") from error
    if not head:
        raise VceError(f"{path}: the file is empty; fetch or export the image again")
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except VceError:
        raise
    except Image.UnidentifiedImageError as error:
        what = "a web page or text" if head.lstrip()[:1] in b"<{" else "no image of a known format"
        raise VceError(f"{path}: {what}; give a file of type {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders raise nearly every type on a damaged file
        raise VceError(f"{path}: truncated or damaged ({error}); fetch or export the image again") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _head(path: Path) -> bytes:
    with path.open("rb") as handle:
        return handle.read(64)


def _plain(image: Image.Image, path: Path) -> Image.Image:
    """The image in a mode that resizes well: L, RGB, RGBA, or F for 16-bit grey, then in [0, 1]."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.asarray(image, dtype=np.float32) / 65535)
    if image.mode in ("I", "F"):
        raise VceError(f"{path}: 32-bit pixels have no known range; save the image with 8 or 16 bits per channel")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize and centre crop in one step, so that a 20000×1 image never grows a side of millions."""
    if image.size != (width, height):
        scale = max(width / image.width, height / image.height) * CONTEXT
        across, down = width / scale, height / scale
        left, top = (image.width - across) / 2, (image.height - down) / 2
        box = (left, top, left + across, top + down)
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    if image.mode != "RGBA":
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _to_tensor(image: Image.Image, channels: int) -> Tensor:
    """C×H×W in [0, 1]; bicubic overshoot of the float mode is cut."""
    if image.mode != "F":
        image = image.convert("L" if channels == 1 else "RGB")
    values = torch.from_numpy(np.array(image, dtype=np.float32))
    values = values.clamp(0, 1) if image.mode == "F" else values / 255
    values = values[None] if values.ndim == 2 else values.permute(2, 0, 1)
    return values.expand(channels, -1, -1).contiguous()

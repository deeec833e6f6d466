"""A user's own image: every pixel format, rotation, damage and size ends in a good tensor or in one clear line."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.images import MAX_PIXELS, load_image, save_image
from common.errors import VceError

SHAPE = (3, 32, 32)


@pytest.fixture
def quarters() -> Image.Image:
    """A 64×64 picture with red top left, green top right, blue bottom left, white bottom right."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32, :32, 0] = pixels[:32, 32:, 1] = pixels[32:, :32, 2] = 255
    pixels[32:, 32:] = 255
    return Image.fromarray(pixels)


def corners(tensor: torch.Tensor) -> list[list[float]]:
    """The four corner pixels, row by row."""
    return [tensor[:, y, x].tolist() for y in (1, -2) for x in (1, -2)]


RED, GREEN, BLUE, WHITE, BLACK = [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]


def test_plain_image_keeps_its_places_and_range(quarters, tmp_path):
    quarters.save(tmp_path / "a.png")
    tensor = load_image(tmp_path / "a.png", SHAPE)
    assert tensor.shape == SHAPE and tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert tensor.min() >= 0 and tensor.max() <= 1
    assert corners(tensor) == [RED, GREEN, BLUE, WHITE]


def test_one_step_equals_resize_then_crop(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    usual = Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC).crop((16, 16, 240, 240))
    expected = torch.from_numpy(np.array(usual)).permute(2, 0, 1) / 255
    assert (load_image(tmp_path / "a.png", (3, 224, 224)) - expected).abs().max() <= 1 / 255 + 1e-6


def test_exact_size_is_taken_as_it_is_and_survives_a_round_trip(tmp_path):
    for channels in (1, 3):
        image = torch.randint(0, 256, (channels, 20, 30), generator=torch.Generator().manual_seed(0)) / 255
        save_image(image, tmp_path / "a.png")
        assert torch.equal(load_image(tmp_path / "a.png", (channels, 20, 30)), image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [RED, GREEN, BLUE, WHITE]),
        (2, [GREEN, RED, WHITE, BLUE]),
        (3, [WHITE, BLUE, GREEN, RED]),
        (4, [BLUE, WHITE, RED, GREEN]),
        (5, [RED, BLUE, GREEN, WHITE]),
        (6, [BLUE, RED, WHITE, GREEN]),
        (7, [WHITE, GREEN, BLUE, RED]),
        (8, [GREEN, WHITE, RED, BLUE]),
    ],
)
def test_exif_rotation(quarters, tmp_path, orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarters.save(tmp_path / "a.png", exif=exif)
    assert corners(load_image(tmp_path / "a.png", SHAPE)) == expected


def test_grey_becomes_three_equal_channels_and_colour_becomes_luminance(quarters, tmp_path):
    quarters.convert("L").save(tmp_path / "grey.png")
    quarters.save(tmp_path / "colour.png")
    three = load_image(tmp_path / "grey.png", SHAPE)
    assert torch.equal(three[0], three[1]) and torch.equal(three[0], three[2])
    one = load_image(tmp_path / "colour.png", (1, 32, 32))
    assert one.shape == (1, 32, 32)
    assert [value for (value,) in corners(one)] == pytest.approx([0.299, 0.587, 0.114, 1.0], abs=2 / 255)


def test_transparency_is_laid_on_white(quarters, tmp_path):
    rgba = quarters.convert("RGBA")
    rgba.paste((0, 0, 0, 0), (0, 0, 32, 32))
    rgba.save(tmp_path / "rgba.png")
    assert corners(load_image(tmp_path / "rgba.png", SHAPE)) == [WHITE, GREEN, BLUE, WHITE]
    half = Image.new("LA", (40, 40), (0, 128))
    half.save(tmp_path / "la.png")
    assert load_image(tmp_path / "la.png", SHAPE).mean().item() == pytest.approx(127 / 255, abs=1.5 / 255)
    keyed = quarters.quantize(8)
    keyed.save(tmp_path / "p.png", transparency=keyed.getpixel((0, 0)))
    assert corners(load_image(tmp_path / "p.png", SHAPE)) == [WHITE, GREEN, BLUE, WHITE]


def test_palette_cmyk_and_bilevel(quarters, tmp_path):
    quarters.quantize(8).save(tmp_path / "p.gif")
    assert corners(load_image(tmp_path / "p.gif", SHAPE)) == [RED, GREEN, BLUE, WHITE]
    quarters.convert("CMYK").save(tmp_path / "cmyk.tif")
    assert corners(load_image(tmp_path / "cmyk.tif", SHAPE)) == [RED, GREEN, BLUE, WHITE]
    quarters.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    for got, expected in zip(corners(load_image(tmp_path / "cmyk.jpg", SHAPE)), [RED, GREEN, BLUE, WHITE], strict=True):
        assert got == pytest.approx(expected, abs=0.03)
    Image.new("1", (40, 40), 1).save(tmp_path / "bit.png")
    assert load_image(tmp_path / "bit.png", SHAPE).eq(1).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    for name in ("a.png", "a.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        tensor = load_image(tmp_path / name, (1, 32, 32))
        assert torch.allclose(tensor[0], torch.from_numpy(ramp.astype(np.float32)) / 65535)
    Image.fromarray(np.full((50, 40), 1000, np.uint16)).save(tmp_path / "b.png")
    assert load_image(tmp_path / "b.png", SHAPE) == pytest.approx(1000 / 65535, abs=1e-6)
    step = np.repeat(np.array([[0, 65535]], np.uint16), 20, axis=1).repeat(40, axis=0)
    Image.fromarray(step).save(tmp_path / "c.png")
    sharp = load_image(tmp_path / "c.png", SHAPE)
    assert sharp.min() == 0 and sharp.max() == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2), (33, 31)])
def test_odd_sizes(tmp_path, size):
    Image.new("RGB", size, (255, 0, 0)).save(tmp_path / "a.png")
    tensor = load_image(tmp_path / "a.png", SHAPE)
    assert tensor.shape == SHAPE
    assert corners(tensor) == [RED] * 4


def test_non_square_classifier(tmp_path):
    Image.new("RGB", (50, 50), (0, 255, 0)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", (3, 20, 60)).shape == (3, 20, 60)


def png_claiming(width: int, height: int) -> bytes:
    """The start of a PNG that claims a size; decoding it would need width × height × 3 bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_huge_png_is_refused_before_decoding(tmp_path):
    path = tmp_path / "huge.png"
    path.write_bytes(png_claiming(20_000, 20_000))
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(VceError, match=rf"huge.png: 400 megapixels, more than the {MAX_PIXELS // 10**6}.*scale"):
        load_image(path, SHAPE)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_huge_jpeg_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "huge.jpg"
    tile = Image.new("L", (20_000, 20_000), 200)
    tile.save(path, quality=50)
    code = (
        "import resource, sys; from common.data.images import load_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(load_image(sys.argv[1], (1, 32, 32)).mean().item())\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=60)
    mean, kilobytes = run.stdout.split()
    assert float(mean) == pytest.approx(200 / 255, abs=2 / 255)
    assert int(kilobytes) < 100_000


def test_large_progressive_jpeg_is_refused(tmp_path):
    path = tmp_path / "p.jpg"
    Image.new("L", (64, 64)).save(path, progressive=True)
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\xc2")
    content[start + 5 : start + 9] = struct.pack(">HH", 20_000, 20_000)
    path.write_bytes(content)
    with pytest.raises(VceError, match=r"p\.jpg: 400 megapixels.*baseline JPEG"):
        load_image(path, SHAPE)


def noise_bytes(tmp_path, suffix: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole{suffix}")
    return (tmp_path / f"whole{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".tif", ".bmp", ".webp"])
def test_truncated_file(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    whole = noise_bytes(tmp_path, suffix)
    for part in (0.05, 0.5):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(VceError, match=rf"cut{suffix}: .*(fetch|give)"):
            load_image(path, SHAPE)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_never_raise_anything_else(tmp_path, seed):
    rng = np.random.default_rng(seed)
    suffix = (".png", ".jpg", ".gif", ".tif", ".webp")[seed % 5]
    damaged = bytearray(noise_bytes(tmp_path, suffix))
    for position in rng.integers(0, 300, 20):
        damaged[position] = rng.integers(0, 256)
    (tmp_path / "bad").write_bytes(damaged)
    try:
        tensor = load_image(tmp_path / "bad", SHAPE)
    except VceError as error:
        assert "bad" in str(error)
    else:
        assert tensor.shape == SHAPE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.jpg: the file is empty; fetch"),
        (b"  <!DOCTYPE html><html>404</html>", "x.jpg: a web page or text; give a file of type PNG"),
        (b'{"error": 404}', "x.jpg: a web page or text"),
        (b"%PDF-1.4 not an image", "x.jpg: no image of a known format; give"),
    ],
)
def test_not_an_image(tmp_path, content, message):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(VceError, match=message):
        load_image(tmp_path / "x.jpg", SHAPE)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(VceError, match=r"no\.png: No such file or directory; name"):
        load_image(tmp_path / "no.png", SHAPE)
    with pytest.raises(VceError, match="Is a directory; name"):
        load_image(tmp_path, SHAPE)


def test_float_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((40, 40), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(VceError, match=r"f\.tif: 32-bit pixels have no known range; save"):
        load_image(tmp_path / "f.tif", SHAPE)

"""Opening and resizing page images, and boxes between the two sizes, with oracles in exact fractions."""

import math
import os
import random
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from hpt_trl.errors import UserError
from hpt_trl.retrieval.pages import fit_pixels, fitted_size, open_image, to_raw

VRAG = (256 * 28 * 28, 512 * 28 * 28)


def test_colours_orientation_and_transparency(tmp_path):
    raw = Image.new("RGB", (30, 20), "blue")
    raw.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned right: the first pixel comes to the upper right
    raw.save(tmp_path / "turned.png", exif=exif)
    turned = open_image(tmp_path / "turned.png")
    assert turned.size == (20, 30) and turned.mode == "RGB" and turned.getpixel((19, 0)) == (255, 0, 0)

    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30] * 256)
    palette.save(tmp_path / "palette.png", transparency=0)
    assert open_image(tmp_path / "palette.png").getpixel((1, 1)) == (255, 255, 255)
    for mode, name in (("L", "a.png"), ("1", "b.tif"), ("CMYK", "c.jpg"), ("LA", "d.png"), ("I;16", "e.png")):
        Image.new(mode, (5, 6)).save(tmp_path / name)
        assert open_image(tmp_path / name).mode == "RGB"
    assert open_image((tmp_path / "a.png").read_bytes()).size == (5, 6)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "big-endian.tif"])
def test_grey_of_16_bits_keeps_its_shades(tmp_path, name):
    shades = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    image = Image.fromarray(shades)
    if name == "big-endian.tif":
        image = Image.frombytes("I;16B", (16, 16), shades.astype(">u2").tobytes())
    image.save(tmp_path / name)
    assert np.array_equal(np.asarray(open_image(tmp_path / name))[..., 0].ravel(), np.arange(256))


def test_a_clear_shade_of_16_bits_is_white(tmp_path):
    Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16)).save(tmp_path / "a.png", transparency=256)
    opened = open_image(tmp_path / "a.png")
    assert [opened.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (255, 255, 255), (255, 255, 255)]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_samples_of_32_bits_are_refused(tmp_path, kind):
    Image.fromarray(np.ones((4, 4), dtype=kind)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif has samples of 32 bits; save it with 8"):
        open_image(tmp_path / "a.tif")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png is no file"):
        open_image(tmp_path / "a.png")


def broken_files(folder):
    noise = Image.frombytes("RGB", (100, 100), random.Random(0).randbytes(30_000))
    found = {}
    for name in ("cut.png", "cut.jpg", "cut.webp", "cut.tif"):
        noise.save(folder / name)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        found[name] = folder / name
    for name, content in (
        ("empty.png", b""),
        ("text.png", b"no image at all"),
        ("zeros.jpg", bytes(1000)),
        ("head.png", b"\x89PNG\r\n\x1a\n"),
        ("head.jpg", b"\xff\xd8\xff\xe0"),
        ("pdf.png", b"%PDF-1.4\n"),
    ):
        (folder / name).write_bytes(content)
        found[name] = folder / name
    noise.save(folder / "two.tif", save_all=True, append_images=[noise])
    (folder / "folder.png").mkdir()
    return [*found.values(), folder / "two.tif", folder / "folder.png", folder / "missing.png"]


def test_broken_images_are_messages_that_name_the_file(tmp_path):
    for path in broken_files(tmp_path):
        with pytest.raises(UserError) as raised:
            open_image(path)
        assert path.name in str(raised.value), path


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_flipped_byte_never_leaves_another_error(tmp_path):
    noise = Image.frombytes("RGB", (40, 40), random.Random(0).randbytes(4_800))
    draw = random.Random(1)
    for suffix in ("png", "jpg", "webp", "tif"):
        noise.save(tmp_path / f"whole.{suffix}")
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        refused = 0
        for _ in range(150):
            damaged = bytearray(whole)
            for _ in range(3):
                damaged[draw.randrange(min(len(damaged), 400))] = draw.randrange(256)
            try:
                assert open_image(bytes(damaged), name="page").mode == "RGB"
            except UserError as error:
                refused += 1
                assert "page" in str(error)
        assert refused, suffix


@pytest.mark.filterwarnings("error")
def test_decompression_bombs_are_refused_before_they_are_decoded(tmp_path):
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for side in (10_000, 60_000):
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
        (tmp_path / "bomb.png").write_bytes(bomb)
        with pytest.raises(UserError, match=r"bomb\.png has .* pixels; allowed"):
            open_image(tmp_path / "bomb.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    assert open_image(tmp_path / "small.png", max_pixels=400).size == (20, 20)
    with pytest.raises(UserError, match="20 x 20 pixels; allowed are 399"):
        open_image(tmp_path / "small.png", max_pixels=399)


def test_sizes_lie_between_the_limits_and_keep_the_sides_ratio():
    draw = random.Random(0)
    for _ in range(3000):
        width = int(math.exp(draw.uniform(math.log(10), math.log(6000))))
        height = min(max(int(width * math.exp(draw.uniform(-2.5, 2.5))), 10), 8000)
        shown = fitted_size(width, height, *VRAG)
        assert VRAG[0] <= shown[0] * shown[1] <= VRAG[1]
        # Of a whole pixel on either side.
        low = Fraction(shown[0] - 1, shown[1] + 1)
        high = Fraction(shown[0] + 1, shown[1] - 1)
        assert low <= Fraction(width, height) <= high, (width, height, shown)
        if VRAG[0] <= width * height <= VRAG[1]:
            assert shown == (width, height)
        elif width * height > VRAG[1]:
            assert shown[0] * shown[1] > VRAG[1] - sum(shown) - 1


@pytest.mark.parametrize(
    ("size", "limits", "shown"),
    [
        ((1000, 1000), (784, 784 * 4), (56, 56)),
        ((28, 28), (784, 3136), (28, 28)),
        ((10, 10), (784, 3136), (28, 28)),
        ((1, 100), (784, 3136), (28, 112)),
        ((5600, 28), (784, 3136), (112, 28)),
        ((2000, 10), VRAG, (6336, 32)),
        ((784, 1024), VRAG, (554, 724)),
    ],
)
def test_sizes_by_hand(size, limits, shown):
    found = fitted_size(*size, *limits)
    assert found == shown and min(found) >= 28 and found[0] * found[1] <= limits[1]
    assert fit_pixels(Image.new("RGB", size), *limits).size == shown


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (10_000, 3)])
def test_a_strip_is_refused(size):
    with pytest.raises(UserError, match="more than 200 times"):
        fitted_size(*size, *VRAG)


@pytest.mark.parametrize("limits", [(784, 783), (0, 700), (1000, 900)])
def test_limits_that_cannot_hold(limits):
    with pytest.raises(UserError, match="limits of pixels"):
        fitted_size(100, 100, *limits)


def test_boxes_at_the_borders():
    shown, raw = (554, 724), (1700, 2200)
    assert to_raw((0, 0, 554, 724), shown, raw) == (0, 0, 1700, 2200)
    assert to_raw((-50, -1e9, 1e9, 2000), shown, raw) == (0, 0, 1700, 2200)
    assert to_raw((553, 723, 554, 724), shown, raw) == (1696, 2196, 1700, 2200)
    assert to_raw((0, 0, 1e-9, 1e-9), shown, raw) == (0, 0, 1, 1)
    assert to_raw((553.999999, 0, 554, 1), shown, raw) == (1699, 0, 1700, 4)
    assert to_raw((10, 20, 30, 40), (100, 100), (100, 100)) == (10, 20, 30, 40)
    # A shown image that was enlarged: several of its pixels are one raw pixel.
    assert to_raw((3, 3, 4, 4), (100, 100), (10, 10)) == (0, 0, 1, 1)


@pytest.mark.parametrize(
    "box",
    [
        (10, 10, 10, 20),
        (20, 10, 10, 20),
        (10, 20, 20, 10),
        (100, 0, 120, 50),
        (-20, 0, 0, 50),
        (0, 100, 50, 101),
        (math.nan, 0, 1, 1),
        (0, 0, math.inf, 1),
        (-math.inf, 0, 1, 1),
    ],
)
def test_boxes_that_are_none(box):
    assert to_raw(box, (100, 100), (1000, 700)) is None


def test_boxes_there_and_back_against_exact_fractions():
    draw = random.Random(0)
    for _ in range(4000):
        raw = draw.randint(1, 4000), draw.randint(1, 4000)
        shown = draw.randint(1, 1500), draw.randint(1, 1500)
        box = [draw.uniform(-0.2, 1.2) * shown[axis % 2] for axis in range(4)]
        found = to_raw(box, shown, raw)
        exact = [Fraction(box[axis]) * raw[axis % 2] / shown[axis % 2] for axis in range(4)]
        clamped = [min(max(value, 0), raw[axis % 2]) for axis, value in enumerate(exact)]
        if clamped[0] >= clamped[2] or clamped[1] >= clamped[3]:
            assert found is None
            continue
        assert found is not None
        for axis in (0, 1):
            assert 0 <= found[axis] <= clamped[axis] < found[axis] + 1
            assert found[axis + 2] - 1 < clamped[axis + 2] <= found[axis + 2] <= raw[axis]
            assert found[axis] < found[axis + 2]
        # A box of whole raw pixels comes back whole, and no more than a shown pixel larger on each side.
        there = to_raw(found, raw, shown)
        assert there is not None
        back = to_raw(there, shown, raw)
        assert back is not None
        for axis in (0, 1):
            assert back[axis] <= found[axis] and found[axis + 2] <= back[axis + 2]
            pixel = Fraction(raw[axis], shown[axis])
            assert found[axis] - back[axis] < pixel + 1 and back[axis + 2] - found[axis + 2] < pixel + 1

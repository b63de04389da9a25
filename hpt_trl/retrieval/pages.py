"""Pages, how their images are opened and resized, and boxes in the pixels of either size."""

import hashlib
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from hpt_trl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

# Pixels of a page image at most: A4 at 600 dpi has 35 millions. Below Pillow's own limit, which only warns.
MAX_PIXELS = 80_000_000
# Of Qwen2.5-VL, whose processor takes no shorter side and no image with sides that differ more.
SHORTEST_SIDE, MAX_ASPECT = 28, 200


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        name: unique in its index, e.g. `reports/norvik_3`; what reference pages are named by.
        image: path, relative to the folder of the index or absolute; of a service what it calls the image.
        text: of the page; empty where none is known.
        document: name of the document that it is a page of.
        number: in the document, from 1.
        image_digest: of the image's bytes, empty where they are not at hand.
    """

    name: str
    image: str
    text: str
    document: str
    number: int
    image_digest: str = ""


@dataclass(frozen=True)
class Hit:
    """A page of a ranking.

    Attributes:
        page: the page.
        score: higher is better, comparable within one ranking alone; None where a service tells none.
    """

    page: Page
    score: float | None

    @property
    def name(self) -> str:
        """The page's name."""
        return self.page.name


def image_digest(content: bytes) -> str:
    """What a page's image is told from others by."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def open_image(source: str | Path | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> "Image.Image":
    """Opens a page image: RGB, upright (EXIF), transparency on white, decoded to the last pixel.

    Args:
        source: a file, or its bytes.
        name: what messages call it; by default the path.
        max_pixels: width x height above which it is refused, before it is decoded.

    Raises:
        UserError: it is missing, no image, broken off, holds more than one image, is too large or has samples of 32
            bits.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    called = name or (str(source) if isinstance(source, str | Path) else "the image")
    try:
        if not isinstance(source, bytes):
            refuse_special(source, called)
        with warnings.catch_warnings():
            # Of what is refused below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(BytesIO(source) if isinstance(source, bytes) else source)
        with opened as image:
            if image.width * image.height > max_pixels:
                raise _too_large(called, f"{image.width} x {image.height} pixels", max_pixels)
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise UserError(f"{called} holds {frames} images; save each as a file of its own, or all as one PDF.")
            # An image that is transposed or converted is decoded before.
            upright = _of_8_bits(ImageOps.exif_transpose(image), called)
            if "A" in upright.getbands() or "transparency" in upright.info:
                layer = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            return upright.convert("RGB")
    except Image.DecompressionBombError as error:
        raise _too_large(called, "far more pixels", max_pixels) from error
    except FileNotFoundError as error:
        raise UserError(f"{called}: there is no such image.") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{called} is no image that Pillow reads, or is broken.") from error
    except UserError:
        raise
    # Of a damaged file Pillow's readers raise whatever their parsing meets: SyntaxError, TypeError, struct.error ...
    except Exception as error:
        raise UserError(
            f"{called} cannot be read as an image: {str(error).strip() or type(error).__name__}."
        ) from error


def refuse_special(path: str | Path, called: str) -> None:
    """Looks whether a path leads to what cannot be read as a file: a folder, a device, or a pipe that keeps waiting.

    Raises:
        UserError: it does; what is missing is told by its reader.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{called} is no file.")


def _of_8_bits(image: "Image.Image", called: str) -> "Image.Image":
    """The image with 8 bits a sample: Pillow opens grey ones with 16 and 32, which its `convert` would clip."""
    from PIL import Image

    if image.mode in ("I", "F"):
        raise UserError(f"{called} has samples of 32 bits; save it with 8.")
    if not image.mode.startswith("I;16"):
        return image
    import numpy

    samples = numpy.array(image)
    if (clear := image.info.get("transparency")) is not None:
        samples[samples == clear] = 0xFFFF
    return Image.fromarray((samples >> 8).astype(numpy.uint8))


def _too_large(called: str, size: str, max_pixels: int) -> UserError:
    return UserError(f"{called} has {size}; allowed are {max_pixels}. Save it with fewer pixels.")


def without_halves(text: str) -> str:
    """A text with question marks for half characters, which JSON and text layers may hold and no file can."""
    return text.encode("utf-8", "replace").decode()


def no_text(count: int) -> UserError:
    """What is said of pages that are to be found by their text and have none."""
    return UserError(
        f"none of the {count} pages has text to search by. Read it from the images with `--ocr` (in a recipe "
        "`ocr: true`), write it into pages.jsonl, or search the images by a kind of vectors (`image_vectors`)."
    )


def refuse_narrow(width: int, height: int, called: str = "an image") -> None:
    """Looks whether a model's processor takes an image of this shape.

    Raises:
        UserError: one side is more than `MAX_ASPECT` times the other.
    """
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(
            f"{called} cannot be shown: it has {width} x {height} pixels, one side more than {MAX_ASPECT} times the "
            "other."
        )


def fitted_size(width: int, height: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The size of an image between two numbers of pixels, its sides multiplied by one factor.

    The factor is sqrt(max_pixels / pixels) above the upper limit, sqrt(min_pixels / pixels) below the lower one, else 1
    (VRAG's `process_image`). Sides are rounded down and up, so that the upper limit always holds, and the lower one
    where the two leave a whole number of pixels. No side becomes shorter than `SHORTEST_SIDE`: where it would, it gets
    that length, and the other as much of its own as `max_pixels` leaves.

    Raises:
        UserError: one side is more than `MAX_ASPECT` times the other, which no model's processor takes, or the limits
            are below SHORTEST_SIDE², or in the wrong order.
    """
    if not max_pixels >= SHORTEST_SIDE**2 or min_pixels > max_pixels:
        raise UserError(
            f"the limits of pixels are {min_pixels} and {max_pixels}; allowed: the first at most the second, and the "
            f"second at least {SHORTEST_SIDE**2}."
        )
    refuse_narrow(width, height)
    shown_width, shown_height = width, height
    if width * height > max_pixels:
        factor = math.sqrt(max_pixels / (width * height))
        shown_width, shown_height = math.floor(width * factor), math.floor(height * factor)
    elif width * height < min_pixels:
        factor = math.sqrt(min_pixels / (width * height))
        shown_width, shown_height = math.ceil(width * factor), math.ceil(height * factor)
    shown_width, shown_height = max(shown_width, SHORTEST_SIDE), max(shown_height, SHORTEST_SIDE)
    if shown_width * shown_height > max_pixels:
        if shown_width >= shown_height:
            shown_width = max_pixels // shown_height
        else:
            shown_height = max_pixels // shown_width
    return shown_width, shown_height


def fit_pixels(image: "Image.Image", min_pixels: int, max_pixels: int) -> "Image.Image":
    """Resizes an image to a number of pixels between two limits; see `fitted_size`."""
    from PIL import Image

    size = fitted_size(image.width, image.height, min_pixels, max_pixels)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def to_raw(
    box: Sequence[float], shown_size: tuple[int, int], raw_size: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """A box of a shown image as a box of the raw one; with the sizes changed over, the other way.

    It covers what the given one covers (rounded down at its left and upper side, up at the others, in exact fractions)
    and is clamped to the image: a box of the whole shown image is one of the whole raw image, and there and back
    covers the first.

    Args:
        box: x1, y1, x2, y2 in pixels; x2 and y2 are the first ones outside.
        shown_size: width and height that the box refers to.
        raw_size: width and height that the result refers to.

    Returns:
        x1 < x2 and y1 < y2; None for a box that is empty, turned round, not finite or outside of the image.
    """
    if not all(math.isfinite(side) for side in box):
        return None
    sides = []
    for axis in (0, 1):
        shown, raw = shown_size[axis], raw_size[axis]
        low = max(Fraction(box[axis]), Fraction(0))
        high = min(Fraction(box[axis + 2]), Fraction(shown))
        if low >= high:
            return None
        sides.append((math.floor(low * raw / shown), math.ceil(high * raw / shown)))
    (x1, x2), (y1, y2) = sides
    return x1, y1, x2, y2

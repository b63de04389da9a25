"""A sheet of paper to draw on, which keeps what is written on it: the page's text layer."""

from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from PIL import ImageFont

Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]

SIZE = (640, 480)
MARGIN = 32
PAPER: Colour = (252, 252, 248)
INK: Colour = (28, 30, 36)
TITLE_SIZE = 26


class Written(NamedTuple):
    """A piece of text on a page; `value` is what a question may ask for."""

    text: str
    value: bool


@cache
def font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    """Pillow's own font, which is the same on every system."""
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


class Sheet:
    """An RGB image of `SIZE` pixels, and all that was written on it."""

    def __init__(self, paper: Colour = PAPER) -> None:
        from PIL import Image, ImageDraw

        self.image: Image.Image = Image.new("RGB", SIZE, paper)
        self.draw = ImageDraw.Draw(self.image)
        self.written: list[Written] = []

    def write(
        self,
        text: str,
        place: tuple[float, float],
        *,
        size: int = 18,
        anchor: Literal["lm", "mm", "rm", "lt", "mt", "mb"] = "lm",
        ink: Colour = INK,
        value: bool = False,
    ) -> float:
        """Write one line.

        Args:
            place: x and y in pixels of the point that `anchor` names (Pillow's: left, middle or right; top, middle or
                bottom).
            value: the text is one that a question may ask for.

        Returns:
            Its width in pixels.
        """
        self.draw.text(place, text, font=font(size), fill=ink, anchor=anchor)
        self.written.append(Written(text, value))
        return width_of(text, size)

    def title(self, text: str, accent: Colour) -> None:
        """Write the title and rule it off."""
        self.write(text, (MARGIN, 40), size=TITLE_SIZE)
        self.draw.rectangle((MARGIN, 64, SIZE[0] - MARGIN, 67), fill=accent)

    def text_layer(self, *, values: bool) -> str:
        """What is written on the sheet, in the order of writing; without `values` only what names things."""
        return " ".join(piece.text for piece in self.written if values or not piece.value)


def width_of(text: str, size: int) -> float:
    """The width of a line in pixels."""
    return font(size).getlength(text)

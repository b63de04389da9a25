"""Pages of PDF files: rendered, with their text layer."""

import math
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt_trl.errors import UserError
from hpt_trl.retrieval.pages import MAX_PIXELS, refuse_narrow, refuse_special

if TYPE_CHECKING:
    from PIL import Image

_POINTS_PER_INCH = 72
# What PDFium writes for the hyphen of a word that goes on in the next line.
_WORD_GOES_ON = re.compile("[\ufffe\x02]\\s*")


def require_pdfium() -> None:
    """Looks whether PDFs can be read.

    Raises:
        UserError: pypdfium2 is not installed.
    """
    if find_spec("pypdfium2") is None:
        raise UserError("PDFs are read by pypdfium2. Run: pip install 'hpt-trl[retrieval]'")


def pdf_pages(path: Path, dpi: int) -> "Iterator[tuple[Image.Image, str] | UserError]":
    """Renders a PDF page by page.

    Args:
        path: the file.
        dpi: pixels per inch; fewer where the page would have more than `MAX_PIXELS`.

    Yields:
        Image and text of a page, or what is wrong with it; the pages after it are read all the same.

    Raises:
        UserError: the file cannot be read, is broken, protected by a password or without pages.
    """
    import pypdfium2

    refuse_special(path, str(path))
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        # PDFium's own reason may be that of the file before.
        raise UserError(_unread(path)) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or 'there is no such file'}.") from error
    try:
        if not len(document):
            raise UserError(f"{path} has no pages.")
        for index in range(len(document)):
            try:
                yield _page(document, index, dpi)
            except pypdfium2.PdfiumError as error:
                yield UserError(f"{path}, page {index + 1}: cannot be rendered: {error}.")
            except UserError as error:
                yield UserError(f"{path}, {error}")
    finally:
        document.close()


def _unread(path: Path) -> str:
    try:
        locked = b"/Encrypt" in path.read_bytes()
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}."
    if locked:
        return f"{path} is protected by a password; save it without one."
    return f"{path} cannot be read as a PDF: it is broken, or has no pages."


def _page(document: Any, index: int, dpi: int) -> "tuple[Image.Image, str]":
    page = document[index]
    try:
        width, height = page.get_size()
        scale = min(dpi / _POINTS_PER_INCH, math.sqrt(MAX_PIXELS / max(width * height, 1.0)))
        image = page.render(scale=scale).to_pil().convert("RGB")
        refuse_narrow(image.width, image.height, f"page {index + 1}")
        layer = page.get_textpage()
        try:
            text = layer.get_text_bounded()
        finally:
            layer.close()
    finally:
        page.close()
    return image, _WORD_GOES_ON.sub("", text).replace("\r\n", "\n").replace("\x00", "").strip()

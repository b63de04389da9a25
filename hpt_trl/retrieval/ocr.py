"""Text of page images by optical character recognition, where pages have no text of their own."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hpt_trl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


class TextReader:
    """Reads the text of images with RapidOCR, whose models come with the package (Chinese and Latin script).

    Raises:
        UserError: the extra `ocr` is not installed.
    """

    def __init__(self) -> None:
        if find_spec("rapidocr") is None or find_spec("onnxruntime") is None:
            raise UserError("reading the text of images needs RapidOCR. Run: pip install 'hpt-trl[ocr]'")
        from rapidocr import RapidOCR

        self._engine: Any = RapidOCR(params={"Global.log_level": "critical"})

    def read(self, image: "Image.Image") -> str:
        """The lines that are found, in reading order; empty where there are none."""
        import numpy

        # Channels in OpenCV's order.
        found = self._engine(numpy.asarray(image)[:, :, ::-1])
        return "\n".join(found.txts or ())

"""Contexts that are read for nothing, for processes that have none with an image while others do."""

from hpt_trl.environments.acting import Acting
from hpt_trl.environments.pieces import Piece, Segment


def image_piece(acting: Acting) -> Piece | None:
    """A prompt with an image; None for a model of text alone.

    Processes share the weights that only images reach: each must pass through them as often as the others.
    """
    if not acting.encoder.encoder.is_processor:
        return None
    from PIL import Image

    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    return acting.encoder.prompt([message], [Image.new("RGB", (56, 56), (128, 128, 128))])


def fillers_of(acting: Acting) -> list[Segment]:
    """`image_piece` as what is read beside the rows of a batch that has no image."""
    piece = image_piece(acting)
    return [] if piece is None else [Segment.of([piece], [False])]

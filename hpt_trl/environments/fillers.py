"""Contexts that are generated in or read for nothing, for processes that have none while others do.

With weights in shards every process has to generate as often as the others, and those that only images reach must be
reached on each as often as on the others. In training one process reaches them as well where a batch has no image: an
optimizer moves a weight with a gradient of zero by its momentum, and leaves one without a gradient.
"""

from collections.abc import Sequence

from hpt_trl.environments.acting import Acting
from hpt_trl.environments.pieces import Context, Piece, Segment


def text_context(acting: Acting) -> Context:
    """A short question."""
    return Context.of([acting.encoder.prompt([{"role": "user", "content": "?"}])])


def image_context(acting: Acting) -> Context | None:
    """A question with an image; None for a model of text alone."""
    piece = _image_piece(acting)
    return None if piece is None else Context.of([piece])


def filled(contexts: Sequence[Context], text: Context, image: Context | None) -> list[Context]:
    """The contexts, and behind them what the process generates in for the others."""
    if image is not None and not any(context.images for context in contexts):
        return [*contexts, image]
    return list(contexts) or [text]


def fillers_of(acting: Acting) -> list[Segment]:
    """What is read beside the rows of a batch that has no image."""
    piece = _image_piece(acting)
    return [] if piece is None else [Segment.of([piece], [False])]


def _image_piece(acting: Acting) -> Piece | None:
    if not acting.encoder.encoder.is_processor:
        return None
    from PIL import Image

    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    return acting.encoder.prompt([message], [Image.new("RGB", (56, 56), (128, 128, 128))])

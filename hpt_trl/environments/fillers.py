"""Contexts that are read for nothing, for processes that have none with an image while others do."""

from hpt_trl.environments.acting import Acting
from hpt_trl.environments.pieces import Context, Segment


def fillers_of(acting: Acting) -> list[Segment]:
    """A context with an image; none for a model of text alone.

    Processes share the weights that only images reach: each must pass through them as often as the others.
    """
    if not acting.encoder.encoder.is_processor:
        return []
    from PIL import Image

    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    piece = acting.encoder.prompt([message], [Image.new("RGB", (56, 56), (128, 128, 128))])
    return [Segment.of([piece], [False])]


def context_of(segment: Segment) -> Context:
    """A segment as what a model reads before a turn."""
    types = None if segment.types is None else segment.types.tolist()
    return Context(segment.ids.tolist(), segment.features, segment.images, types)

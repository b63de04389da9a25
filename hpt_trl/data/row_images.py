"""The images of a row in its messages, as a processor reads them."""

from collections.abc import Iterator
from typing import Any

from trl.data_utils import prepare_multimodal_messages

from hpt_trl.data.messages import IMAGE_MARK, images_of
from hpt_trl.errors import UserError

Messages = list[dict[str, Any]]


def with_images(messages: Messages, images: list[Any] | None) -> Messages:
    """Messages whose parts hold the images, as a processor reads them.

    Raises:
        UserError: the messages have places for another number of images.
    """
    try:
        return prepare_multimodal_messages(messages, images=images)
    except ValueError as error:
        raise UserError(f"{error} Give `images` one for each part of type image, in their order.") from error


def images_for(row: dict[str, Any], messages: Messages) -> list[Any]:
    """The images of a row for its messages.

    Raises:
        UserError: one of them is an address, or there is none where a text has a place for it.
    """
    images = images_of(row) or []
    if not images and any(IMAGE_MARK in text for text in _texts(messages)):
        raise UserError(
            f"the text has a place for an image (`{IMAGE_MARK}`), and the row no image; write its path into a column "
            "`images`, or name the column that has it: column_mapping: {images: …}."
        )
    if address := next((image for image in images if isinstance(image, str)), None):
        raise UserError(f"the image {address:.120} is no file; write the path of one.")
    return images


def _texts(messages: Messages) -> Iterator[str]:
    for message in messages:
        content = message.get("content") or ""
        parts = content if isinstance(content, list) else [{"text": content}]
        yield from (part["text"] for part in parts if isinstance(part.get("text"), str))

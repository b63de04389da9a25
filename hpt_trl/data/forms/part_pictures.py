"""Pictures that stand in the parts of messages, as Qwen's files and OpenAI's have them."""

from typing import Any

from datasets import Dataset

from hpt_trl.data.messages import IMAGES
from hpt_trl.data.objects import with_column
from hpt_trl.data.row_checks import iterate_rows

# Types of parts that are images, and where these have theirs.
_PARTS = ("image", "image_url", "input_image")
_HELD = ("image", "image_url", "url", "path", "base64")


def taken_out(rows: Dataset, columns: list[str]) -> tuple[Dataset, bool]:
    """The rows with a column `images` of what the parts of their messages hold, where there is none of them yet."""
    if {*IMAGES} & {*rows.column_names}:
        return rows, False
    every: list[list[Any]] = []
    changed: dict[str, list[Any]] = {name: [] for name in columns}
    for _, values in iterate_rows(rows, columns):
        images: list[Any] = []
        for name, value in zip(columns, values, strict=True):
            changed[name].append(_without_images(value, images))
        every.append(images)
    if not any(every):
        return rows, False
    for name in columns:
        rows = with_column(rows.remove_columns(name), name, changed[name])
    return with_column(rows, "images", every), True


def _without_images(messages: Any, images: list[Any]) -> Any:
    """Messages whose images are places alone; `images` takes what they were."""
    if not isinstance(messages, list):
        return messages
    made = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            message = {**message, "content": [_without_image(part, images) for part in content]}
        made.append(message)
    return made


def _without_image(part: Any, images: list[Any]) -> Any:
    if not isinstance(part, dict) or part.get("type") not in _PARTS:
        return part
    held = next((part[key] for key in _HELD if part.get(key)), None)
    if held is None:
        return part
    images.append(held.get("url", held) if isinstance(held, dict) else held)
    return {"type": "image"}

"""Prompts and completions as text: they come as strings or as lists of messages."""

import json
from typing import Any

Prompt = str | list[dict[str, Any]]

# Columns that hold the images of a row: one, or a list.
IMAGES = ("image", "images")
# Stands in a text where an image belongs.
IMAGE_MARK = "<image>"


def as_text(prompt: Prompt) -> str:
    """A prompt or completion for reading: a string as it is, messages as `role: content` lines (one alone bare)."""
    if isinstance(prompt, str):
        return prompt
    lines = []
    for message in prompt:
        content = message.get("content") or ""
        if calls := message.get("tool_calls"):
            said = [{"type": "text", "text": content}] if isinstance(content, str) else content
            content = [*(part for part in said if part.get("text") != ""), {"type": "text", "text": json.dumps(calls)}]
        if not isinstance(content, str):
            content = " ".join(part.get("text") or f"<{part['type']}>" for part in content)
        lines.append(content if len(prompt) == 1 else f"{message['role']}: {content}")
    return "\n".join(lines)


def text_of(message: Any) -> str:
    """Return the text of a prompt or completion: the string itself, or the content of the last message.

    What is not text, such as an image, a missing content or a malformed part, is left out.
    """
    if isinstance(message, str):
        return message
    content = message[-1].get("content") if message else ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return "" if content is None else str(content)
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str))


def images_of(row: dict[str, Any]) -> list[Any] | None:
    """The images of a row, from its column `images` or `image`; None without one."""
    if "images" in row:
        return row["images"]
    return None if row.get("image") is None else [row["image"]]

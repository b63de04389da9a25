"""The expert's way to an answer: its turns alone, in VRAG's tags.

An environment that replays them puts what it observes between them: the page that a search shows, the part that a box
cuts out.
"""

from collections.abc import Sequence
from typing import Any

VOCABULARIES = ("tags", "tools")
# Tag -> the tool of the environment `vrag` that does the same, and its argument.
_CALLS = {"search": ("search", "query"), "bbox": ("crop", "bbox"), "answer": ("answer", "text")}


def shown_box(box: Sequence[int], page_size: tuple[int, int], shown_size: tuple[int, int]) -> list[int]:
    """A box of a page in pixels of the image that is shown of it.

    It covers what the box covers: rounded down at its left and upper side, up at the others.

    Args:
        box: x1, y1, x2, y2 in pixels of the page; x2 and y2 are the first ones outside.
        page_size: width and height of the page in pixels.
        shown_size: width and height of the shown image in pixels.
    """
    (width, height), (shown_width, shown_height) = page_size, shown_size
    x1, y1, x2, y2 = box
    return [
        x1 * shown_width // width,
        y1 * shown_height // height,
        -(-x2 * shown_width // width),
        -(-y2 * shown_height // height),
    ]


def expert_turns(
    title: str,
    answer: str,
    *,
    box: Sequence[int] | None = None,
    missed: str | None = None,
    vocabulary: str = "tags",
) -> list[dict[str, Any]]:
    """The assistant's turns: a search, a look closer, and the answer.

    Args:
        title: of the page that answers, which is searched for.
        box: x1, y1, x2, y2 in pixels of the shown image, around what answers; None for an expert that does not crop.
        missed: the title of another page, for which this expert searches first.
        vocabulary: `tags`, or `tools` for tool calls.

    Returns:
        Messages of the role `assistant`, one an action.
    """
    write = _tagged if vocabulary == "tags" else _called
    turns = [write("I need a page.", "search", title if missed is None else missed)]
    if missed is not None:
        turns.append(write("This is another page.", "search", title))
    if box is not None:
        turns.append(write("I look closer.", "bbox", list(box)))
    return [*turns, write("I can see it.", "answer", answer)]


def _tagged(thought: str, action: str, value: str | list[int]) -> dict[str, Any]:
    return {"role": "assistant", "content": f"<think>{thought}</think><{action}>{value}</{action}>"}


def _called(thought: str, action: str, value: str | list[int]) -> dict[str, Any]:
    name, argument = _CALLS[action]
    call = {"type": "function", "function": {"name": name, "arguments": {argument: value}}}
    return {"role": "assistant", "content": f"<think>{thought}</think>", "tool_calls": [call]}

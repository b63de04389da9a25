"""Actions in a turn's text or tool calls: one search, one crop or one answer, or what is wrong with it.

Tags are those of VRAG (Wang et al. 2025, arXiv 2505.22019): `<think>…</think>`, then one of `<search>query</search>`,
`<bbox>[x1, y1, x2, y2]</bbox>` and `<answer>…</answer>`.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from hpt_trl.environments.protocol import Turn

# A query of more characters is none: models that repeat themselves write thousands.
LONGEST_QUERY = 512


@dataclass(frozen=True)
class Search:
    """Asks for a page."""

    query: str


@dataclass(frozen=True)
class Crop:
    """Asks for a part of the last page; x1, y1, x2, y2 in pixels of the shown image."""

    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Answer:
    """Ends the rollout."""

    text: str


@dataclass(frozen=True)
class Invalid:
    """No action.

    Attributes:
        why: what is wrong, for the model to read.
    """

    why: str


Action = Search | Crop | Answer | Invalid

_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_TAGS = ("search", "bbox", "answer")
_OPENING = re.compile(rf"<({'|'.join(_TAGS)})>")
_CLOSING = re.compile(rf"</({'|'.join(_TAGS)})>")
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d{1,3})?")

TOOLS: tuple[dict[str, Any], ...] = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": properties, "required": list(properties)},
        },
    }
    for name, description, properties in (
        (
            "search",
            "Finds the next page image for a query that was not shown yet.",
            {"query": {"type": "string", "description": "What the page is about."}},
        ),
        (
            "crop",
            "Shows a part of the last page image larger.",
            {
                "bbox": {
                    "type": "array",
                    "items": {"type": "number"},
                    "description": "x1, y1, x2, y2 in pixels of the page image as it was shown.",
                }
            },
        ),
        ("answer", "Gives the final answer.", {"text": {"type": "string", "description": "The answer alone."}}),
    )
)
_ARGUMENTS = {tool["function"]["name"]: next(iter(tool["function"]["parameters"]["properties"])) for tool in TOOLS}


def read_action(turn: Turn, vocabulary: str) -> Action:
    """The action of a turn, in tags or in tool calls."""
    return read_tags(turn.text) if vocabulary == "tags" else read_calls(turn.message)


def read_tags(text: str) -> Action:
    """The action of a turn in tags; thoughts are left aside, and so is what stands outside of tags."""
    rest = _THOUGHT.sub("", text)
    if "<think>" in rest or "</think>" in rest:
        return Invalid("a thought needs both <think> and </think>")
    opened, closed = _OPENING.findall(rest), _CLOSING.findall(rest)
    if not opened:
        return Invalid(f"</{closed[0]}> was never opened" if closed else "there was no action")
    if len(opened) > 1:
        return Invalid("there was more than one action")
    name = opened[0]
    found = re.search(rf"<{name}>(.*?)</{name}>", rest, re.DOTALL)
    if found is None or len(closed) != 1:
        return Invalid(f"<{name}> must be closed by one </{name}>")
    value = found[1].strip()
    if name == "bbox":
        return _crop(value)
    return _search(value) if name == "search" else _answer(value)


def read_calls(message: dict[str, Any]) -> Action:
    """The action of a turn in tool calls.

    Args:
        message: the turn as the tokenizer's response parser takes it apart.
    """
    calls = message.get("tool_calls") or []
    if len(calls) != 1:
        return Invalid("there was no tool call" if not calls else "there was more than one tool call")
    call = calls[0] if isinstance(calls[0], dict) else {}
    function = call.get("function", call)
    function = function if isinstance(function, dict) else {}
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or name not in _ARGUMENTS:
        return Invalid(f"there is no tool {str(name)[:40]!r}")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        # Brackets that open without an end are beyond the parser's depth.
        except (ValueError, RecursionError):
            return Invalid(f"the arguments of {name} are no JSON")
    wanted = _ARGUMENTS[name]
    if not isinstance(arguments, dict) or set(arguments) != {wanted}:
        return Invalid(f"{name} takes the argument {wanted} alone")
    value = arguments[wanted]
    if name == "crop":
        return _crop(json.dumps(value) if _are_numbers(value) else value if isinstance(value, str) else "")
    if not isinstance(value, str):
        return Invalid(f"{wanted} of {name} must be a text")
    return _search(value.strip()) if name == "search" else _answer(value.strip())


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(side) in (int, float) for side in value)


def _is_unicode(text: str) -> bool:
    """Whether it can be sent and written: JSON may hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _search(query: str) -> Action:
    if not query:
        return Invalid("the query was empty")
    if len(query) > LONGEST_QUERY:
        return Invalid(f"the query was longer than {LONGEST_QUERY} characters")
    if not _is_unicode(query):
        return Invalid("the query held half a character")
    return Search(" ".join(query.split()))


def _answer(text: str) -> Action:
    if not text:
        return Invalid("the answer was empty")
    return Answer(text) if _is_unicode(text) else Invalid("the answer held half a character")


def _crop(text: str) -> Action:
    form = "a box is four numbers, [x1, y1, x2, y2]"
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return Invalid(form)
    parts = [part.strip() for part in text[1:-1].split(",")]
    if len(parts) != 4 or not all(_NUMBER.fullmatch(part) for part in parts):
        return Invalid(form)
    x1, y1, x2, y2 = (float(part) for part in parts)
    if not all(math.isfinite(value) for value in (x1, y1, x2, y2)):
        return Invalid(form)
    if x1 >= x2 or y1 >= y2:
        return Invalid("a box needs x1 < x2 and y1 < y2")
    return Crop((x1, y1, x2, y2))

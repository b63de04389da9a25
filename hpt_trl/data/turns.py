"""What must be whole in a rendered turn of the assistant: its text, its tool calls, and pairs of thinking marks."""

import json
import re
from collections.abc import Iterator
from typing import Any

from hpt_trl.files import parsed_json

# <think> </think>, [THINK] [/THINK], ◁think▷ ◁/think▷ and their like. Templates may write a message's marks in another
# form, so what stands between them is looked for piece by piece.
_MARK = re.compile(r"[<\[◁](/?)(think|thinking|thoughts?|reason|reasoning|reflection|scratchpad)[>\]▷]", re.IGNORECASE)
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


def turn_fault(message: dict[str, Any], rendered: str) -> str | None:
    """What is wrong with a turn as the chat template renders it; None if nothing is.

    Args:
        message: a message of the assistant.
        rendered: the text of its turn, with the thinking mark that the generation prompt opens.
    """
    place, squeezed = 0, _squeezed(rendered)
    for piece in _pieces(message):
        found = squeezed.find(_squeezed(piece), place)
        if found < 0:
            return f"the chat template leaves out {shown(piece, 120)}"
        place = found + len(_squeezed(piece))
    for values in _call_values(message):
        if not any(_squeezed(value) in squeezed for value in values):
            return f"the chat template leaves out {shown(values[0], 120)} of its tool calls"
    own = _opened(message.get("content")) + any(isinstance(message.get(name), str) for name in _THOUGHTS)
    if own and _opened(rendered) > own:
        return "the chat template writes thoughts of its own before those of the message"
    return unpaired_mark(rendered)


def unpaired_mark(text: str) -> str | None:
    """The first thinking mark of a text that closes nothing, or is never closed; None without one."""
    open_marks: dict[str, list[str]] = {}
    for mark in _MARK.finditer(text):
        marks = open_marks.setdefault(mark[2].lower(), [])
        if not mark[1]:
            marks.append(mark[0])
        elif marks:
            marks.pop()
        else:
            return f"its {mark[0]} closes nothing"
    left = next((marks[0] for marks in open_marks.values() if marks), None)
    return None if left is None else f"its {left} is never closed"


def open_mark(prompt: str) -> str:
    """The opening mark that a prompt ends on, which the answer has to close; an empty text without one."""
    end = prompt.rstrip()[-24:]
    marks = [mark for mark in _MARK.finditer(end) if mark.end() == len(end) and not mark[1]]
    return marks[0][0] if marks else ""


def shown(text: str, length: int = 160) -> str:
    """A text for a message, quoted, its middle left out where it is long."""
    return repr(text if len(text) <= length else text[: length // 2] + " […] " + text[-length // 2 :])


def _pieces(message: dict[str, Any]) -> Iterator[str]:
    """The texts that the turn must hold, in their order."""
    thoughts = [message[name] for name in _THOUGHTS if isinstance(message.get(name), str)]
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text") or "" for part in content)
    for text in [*thoughts[:1], content]:
        yield from (piece for piece in _MARK.sub("\0", text).split("\0") if piece.strip())


def _call_values(message: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Names and texts of the tool calls, each in the forms that a template may write it in."""
    for call in message.get("tool_calls") or []:
        function = call.get("function") or call
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = parsed_json(arguments)
            except ValueError:
                arguments = [arguments]
        for text in [function.get("name") or "", *_texts(arguments)]:
            yield (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _opened(content: Any) -> int:
    """Number of opening thinking marks of a text, or of a message's parts."""
    return sum(
        not mark[1]
        for text in ([content] if isinstance(content, str) else _texts(content))
        for mark in _MARK.finditer(text)
    )


def _squeezed(text: str) -> str:
    """Without white space, which templates strip and add."""
    return "".join(text.split())

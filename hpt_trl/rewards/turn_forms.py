"""The form of a turn in the retrieval environment: a thought, then exactly one action."""

import re
from collections.abc import Iterator
from typing import Any

from hpt_trl.data.messages import text_of

# The last is how templates such as Qwen's write a tool call.
ACTIONS = ("search", "bbox", "answer", "tool_call")

_TAG = rf"</?(?:think|{'|'.join(ACTIONS)})>"
# Not only space, and without any of the tags.
_INSIDE = rf"(?!\s*{_TAG})(?:(?!{_TAG}).)+"
_THOUGHT = rf"<think>{_INSIDE}</think>"
_ACTION = rf"(?:{'|'.join(f'<{name}>{_INSIDE}</{name}>' for name in ACTIONS)})"
_TURN = rf"{_THOUGHT}\s*{_ACTION}"
_ONE_TURN = re.compile(rf"\s*{_TURN}\s*", re.DOTALL)
_TURNS = re.compile(rf"\s*(?:{_TURN}\s*)+", re.DOTALL)
_ONE_THOUGHT = re.compile(rf"\s*{_THOUGHT}\s*", re.DOTALL)
_ONE_ACTION = re.compile(rf"\s*{_ACTION}\s*", re.DOTALL)


def well_formed(completion: Any) -> bool:
    """Whether every turn of the model is one thought and then one action, with nothing but space around them.

    Args:
        completion: A text of one or several turns, or messages, of which the assistant's count. In a message the
            thought may stand apart as `reasoning_content`, and the action may be one tool call.
    """
    if isinstance(completion, str):
        return _TURNS.fullmatch(completion) is not None
    turns = list(_assistant(completion))
    return bool(turns) and all(_is_turn(message) for message in turns)


def _assistant(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (message for message in messages if message["role"] == "assistant")


def _is_turn(message: dict[str, Any]) -> bool:
    text, calls = text_of([message]), message.get("tool_calls") or []
    apart = bool((message.get("reasoning_content") or "").strip())
    if calls:
        thought = apart != (_ONE_THOUGHT.fullmatch(text) is not None)
        return len(calls) == 1 and thought and not (apart and text.strip())
    return (_ONE_ACTION if apart else _ONE_TURN).fullmatch(text) is not None

"""Rows: right ones of each layout, and what becomes of them by changes that hypothesis draws."""

import copy
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.strategies import VALUES

_CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
ROWS: dict[str, dict[str, Any]] = {
    "prompts": {"prompt": "1 + 1?", "completion": "2", "answer": "2"},
    "messages": {
        "prompt": [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1?"}],
        "completion": [{"role": "assistant", "content": "2"}],
    },
    "conversation": {
        "messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}],
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
    },
    "calls": {
        "messages": [
            {"role": "user", "content": "1?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
            },
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": [{"type": "text", "text": "1"}]},
        ],
    },
    "comparisons": {"prompt": "1 + 1?", "chosen": "2", "rejected": "3", "margin": 0.5},
    "dialogues": {"chosen": "\n\nHuman: 1?\n\nAssistant: 1", "rejected": "\n\nHuman: 1?\n\nAssistant: 2"},
    "documents": {"text": "One and one is two."},
    "sharegpt": {"conversations": [{"from": "human", "value": "1?"}, {"from": "gpt", "value": "1"}]},
    "alpaca": {"instruction": "Add.", "input": "1 + 1", "output": "2"},
}
LAYOUTS = {
    **dict.fromkeys(("prompts", "messages"), ("prompts", "demonstrations")),
    **dict.fromkeys(("conversation", "calls", "sharegpt", "alpaca"), ("demonstrations",)),
    **dict.fromkeys(("comparisons", "dialogues"), ("comparisons",)),
    "documents": ("documents",),
}


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


@st.composite
def changed_rows(draw: Any, row: dict[str, Any]) -> Any:
    """A row in which a value is another, is gone, or is wrapped."""
    row = copy.deepcopy(row)
    place = draw(st.sampled_from(_places(row)))
    new = draw(st.one_of(VALUES, st.sampled_from([_nested(300), _nested(900), "x" * 10_000, [], {}, "\ud800"])))
    if not place:
        return new
    holder: Any = row
    for key in place[:-1]:
        holder = holder[key]
    if draw(st.integers(0, 3)) == 0 and isinstance(holder, dict):
        del holder[place[-1]]
        holder[draw(st.sampled_from(["role", "row", "_row", "text", "x", "content"]))] = new
    else:
        holder[place[-1]] = new
    return row


def _nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value

"""Forms of whole conversations: messages, ShareGPT, ultrachat, and turns that name no role."""

from collections.abc import Callable
from typing import Any

from hpt_trl.data.forms.form import Columns, Form, Parts
from hpt_trl.data.forms.messages import as_messages, is_conversation, is_sharegpt, lost_prompt
from hpt_trl.data.layout_names import Layout
from hpt_trl.data.rendering import WHOLE
from hpt_trl.data.row_checks import conversation_fault
from hpt_trl.data.stored_text import decoded
from hpt_trl.data.usual_names import CONVERSATIONS, Names


def conversations(layout: Layout, names: Names = CONVERSATIONS) -> tuple[Form, ...]:
    """The forms of conversations in a column of one of these names."""
    parts, convert = {"conversation": names}, _CONVERTERS[layout]
    return (
        Form(
            "messages",
            layout,
            "conversations of messages",
            parts,
            convert,
            looks=lambda first: is_conversation(first["conversation"]) and not is_sharegpt(first["conversation"]),
        ),
        Form(
            "sharegpt",
            layout,
            "ShareGPT conversations",
            parts,
            convert,
            looks=lambda first: is_sharegpt(first["conversation"]),
        ),
    )


def unnamed_turns(layout: Layout) -> tuple[Form, ...]:
    """The forms of conversations whose roles show in the order of the turns, or in the keys of pairs of them."""
    return (
        Form(
            "capybara",
            layout,
            "conversations of pairs, `input` and `output` (Capybara)",
            {"conversation": CONVERSATIONS},
            _unfolded(layout, _of_pairs),
            looks=lambda first: _of_pairs(first["conversation"]) is not None,
        ),
        # Under other names a list of texts may have any number of speakers.
        Form(
            "lima",
            layout,
            "conversations of texts, the user's and the assistant's in turn (LIMA)",
            {"conversation": ("conversations", "conversation")},
            _unfolded(layout, _of_texts),
            looks=lambda first: _of_texts(first["conversation"]) is not None,
        ),
    )


def _unfolded(
    layout: Layout, messages_of: Callable[[Any], list[dict[str, Any]] | None]
) -> Callable[[Parts, Columns], Parts | str]:
    def convert(parts: Parts, columns: Columns) -> Parts | str:
        messages = messages_of(parts["conversation"])
        if messages is None:
            column = columns["conversation"]
            return f"`{column}` is {parts['conversation']!r:.60}; write turns as in the other rows, or messages in all."
        return _CONVERTERS[layout](parts | {"conversation": messages}, columns)

    return convert


def _of_pairs(value: Any) -> list[dict[str, Any]] | None:
    turns = decoded(value)
    if not isinstance(turns, list) or not turns:
        return None
    if not all(isinstance(turn, dict) and _is_pair(turn) for turn in turns):
        return None
    messages = [
        {"role": role, "content": turn[key]}
        for turn in turns
        for key, role in (("input", "user"), ("output", "assistant"))
    ]
    # The last answer may be what is asked for.
    return messages if messages[-1]["content"] is not None else messages[:-1]


def _is_pair(turn: dict[str, Any]) -> bool:
    """Whether a turn has these two alone; of a further part nobody knows where it belongs."""
    others = (value for key, value in turn.items() if key not in ("input", "output"))
    return isinstance(turn.get("input"), str) and "output" in turn and all(value is None for value in others)


def _of_texts(value: Any) -> list[dict[str, Any]] | None:
    texts = decoded(value)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        return None
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def ultrachat(layout: Layout) -> Form:
    """A prompt beside the messages that begin with it."""
    return Form(
        "ultrachat",
        layout,
        "ultrachat's conversations (`messages`, which hold the `prompt`)",
        {"prompt": ("prompt",), "conversation": ("messages",)},
        _CONVERTERS[layout],
        looks=lambda first: (
            (isinstance(first["prompt"], str) or is_conversation(first["prompt"]))
            and is_conversation(first["conversation"])
        ),
    )


def _demonstration(parts: Parts, columns: Columns) -> Parts | str:
    """A conversation as a whole: every turn of the assistant is trained."""
    messages = as_messages(parts["conversation"])
    if fault := conversation_fault(columns["conversation"], messages) or _lost(parts, columns, messages):
        return fault
    return {"prompt": messages[:-1], WHOLE: True, "completion": messages[-1:]}


def _rollout(parts: Parts, columns: Columns) -> Parts | str:
    """A conversation whose last turn is left to the model; what the assistant said there is the demonstration."""
    messages = as_messages(parts["conversation"])
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, dict) and last.get("role") != "assistant":
        return _lost(parts, columns, messages) or {"prompt": messages}
    if fault := conversation_fault(columns["conversation"], messages) or _lost(parts, columns, messages):
        return fault
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def _lost(parts: Parts, columns: Columns, messages: Any) -> str | None:
    return lost_prompt(messages, parts.get("prompt"), f"`{columns['conversation']}`")


_CONVERTERS = {"demonstrations": _demonstration, "prompts": _rollout}

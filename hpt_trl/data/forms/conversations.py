"""Forms of whole conversations: messages, ShareGPT, ultrachat."""

from typing import Any

from hpt_trl.data.forms.form import Columns, Form, Parts
from hpt_trl.data.forms.messages import as_messages, is_conversation, is_sharegpt, lost_prompt
from hpt_trl.data.layouts import Layout
from hpt_trl.data.rendering import WHOLE
from hpt_trl.data.row_checks import conversation_fault

_NAMES = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")


def conversations(layout: Layout, names: tuple[str, ...] = _NAMES) -> tuple[Form, ...]:
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

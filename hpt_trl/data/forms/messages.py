"""Messages as files have them: OpenAI's keys or ShareGPT's, other names of keys and roles, stored as text."""

from typing import Any

from datasets import Dataset

from hpt_trl.data.faults import Faults
from hpt_trl.data.objects import with_column
from hpt_trl.data.reading.soundness import decoded_fault
from hpt_trl.data.row_checks import ROLES, iterate_rows
from hpt_trl.data.stored_text import decoded

# The key that chat templates know -> those by which files have the same.
_KEYS = {"role": ("from",), "content": ("value", "text")}
# ShareGPT, Vicuna, OpenAssistant, LLaMA-Factory and their like -> the roles that chat templates know.
_ROLES = {
    **dict.fromkeys(("human", "prompter", "usr"), "user"),
    **dict.fromkeys(("gpt", "bot", "model", "ai", "chatgpt", "chatbot", "bing", "bard", "claude"), "assistant"),
    **dict.fromkeys(("observation", "tool_response", "tool_output", "tool_result", "function_response"), "tool"),
    "function": "tool",
}
# A turn of the assistant whose text is a call, or a list of calls, as JSON.
_CALLS = ("function_call", "tool_call")
# Where a message has its calls.
_CALL_KEYS = {"tool_calls", "function_call"}


def is_conversation(value: Any) -> bool:
    """Whether a value holds messages, of OpenAI's keys or ShareGPT's or of both, also as text."""
    message = _first_message(value)
    if message is None:
        return False
    if {"role", "content"} <= message.keys() or {"from", "value"} <= message.keys():
        return True
    # Other keys may mean something else, unless the role is one.
    renamed = _renamed(message)
    return "content" in renamed and (_role(renamed.get("role")) in ROLES or renamed.get("role") in _CALLS)


def is_sharegpt(value: Any) -> bool:
    """Whether a value holds messages with ShareGPT's keys, `from` and `value`."""
    message = _first_message(value)
    return message is not None and {"from", "value"} <= message.keys()


def is_stored_otherwise(value: Any) -> bool:
    """Whether a value holds messages that no chat template takes as they are."""
    return is_conversation(value) and as_messages(value) is not value


def as_messages(value: Any) -> Any:
    """Messages with OpenAI's keys and roles, whatever keys, roles or text they came as.

    Returns:
        The messages, the value itself where nothing is to be done; other values as they are, which the checks of rows
        name.
    """
    messages = _listed(decoded(value))
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return messages
    changed = [_with_calls(_renamed(message)) for message in messages]
    return messages if changed == messages else changed


def with_messages(dataset: Dataset, column: str, faults: Faults) -> Dataset:
    """With a column of messages as chat templates take them, which came with ShareGPT's keys or as text.

    A value that is of another kind than the first becomes None, and `faults` knows why.
    """
    if column not in dataset.column_names:
        return dataset
    rows, values = zip(*((row, value) for row, (value,) in iterate_rows(dataset, [column])), strict=True)
    stored = [is_stored_otherwise(value) for value in values]
    if not any(stored):
        return dataset
    first = next(value for value in values if value is not None)
    texts = isinstance(first, str) and not is_conversation(first)
    called = faults.called(column)
    changed = []
    for row, value, otherwise in zip(rows, values, stored, strict=True):
        messages = as_messages(value)
        fault = None
        if otherwise if texts else not isinstance(messages, list | None):
            wanted = "a text" if texts else "a list of messages"
            fault = f"`{called}` is {messages!r:.60}; write {wanted}, as in the first row."
        elif otherwise:
            fault = decoded_fault(called, messages)
        if fault:
            faults.add(row, fault)
        changed.append(None if fault else value if texts else messages)
    return with_column(dataset.remove_columns(column), column, changed)


def _holds(messages: Any, prompt: Any) -> bool:
    """Whether messages hold all that a prompt beside them says, a text or messages; spaces do not count."""
    held = " ".join(_texts(messages))
    asked = [" ".join(prompt.split())] if isinstance(prompt, str) else _texts(as_messages(prompt))
    return all(text in held for text in asked)


def _texts(messages: Any) -> list[str]:
    contents = [message.get("content") for message in messages or [] if isinstance(message, dict)]
    parts = [part for content in contents for part in (content if isinstance(content, list) else [content])]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return [" ".join(text.split()) for text in texts if isinstance(text, str)]


def lost_prompt(messages: Any, prompt: Any, where: str) -> str | None:
    """What is wrong with a prompt that the conversation beside it does not hold; None if nothing is."""
    if prompt is None or _holds(messages, prompt):
        return None
    return (
        f"`prompt` ({prompt!r:.60}) is not in {where}, and would be lost; write it there as a message, or leave it "
        "out: column_mapping: {source_prompt: prompt}."
    )


def _first_message(value: Any) -> dict[str, Any] | None:
    value = _listed(decoded(value))
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, dict) else None


def _listed(value: Any) -> Any:
    """Messages as a list: of one alone, and of an object that has a list for each key, as some tables store them."""
    if not isinstance(value, dict):
        return value
    columns = list(value.values())
    if not columns or not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return [value]
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _role(role: Any) -> Any:
    if not isinstance(role, str) or role in ROLES:
        return role
    plain = role.strip().lower()
    return plain if plain in ROLES else _ROLES.get(plain, role)


def _renamed(message: dict[str, Any]) -> dict[str, Any]:
    """A message with the keys that chat templates know."""
    for known, others in _KEYS.items():
        name = next((name for name in others if message.get(name) is not None), None)
        # A message of calls alone has no text.
        missing = message.get(known) is None and not (known == "content" and _CALL_KEYS & message.keys())
        if name is not None and missing:
            message = {known if key == name else key: value for key, value in message.items() if key != known}
    return message


def _with_calls(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose calls are `tool_calls`; they may be its text, or OpenAI's older `function_call`."""
    role, content = message.get("role"), message.get("content")
    legacy = message.get("function_call")
    if role not in _CALLS and (not legacy or message.get("tool_calls")):
        return message | {"role": _role(role)} if "role" in message else message
    calls = legacy if role not in _CALLS else decoded(content)
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return message
    functions = [
        {"type": "function", "function": {**call, "arguments": decoded(call.get("arguments", {}))}} for call in calls
    ]
    kept = {key: inner for key, inner in message.items() if key not in ("role", "content", "function_call")}
    said = content or "" if role not in _CALLS else ""
    return {"role": "assistant", "content": said, **kept, "tool_calls": functions}

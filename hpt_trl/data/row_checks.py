"""Checks of rows before training: a faulty one is named with its file, its row and what to write.

TRL finds a bad row only when it reaches it, and without its number.
"""

import difflib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from datasets import Dataset

from hpt_trl.data.faults import Faults
from hpt_trl.data.layout_names import Layout
from hpt_trl.data.reading.places import ROW

ROLES = ("system", "developer", "user", "assistant", "tool")


# What is wrong with a row, of the values of its columns; None if nothing is.
FaultOf = Callable[..., str | None]
# A column -> its name in the file.
Called = Callable[[str], str]


def validate_rows(
    dataset: Dataset, source: str, *, demonstration_column: str = "completion", needs_demonstration: bool
) -> None:
    """Check every row: prompt and demonstration are there, not empty and, if messages, well formed.

    Raises:
        UserError: the first faulty rows, with the number of the others; or no rows at all.
    """
    faults = Faults(source)
    find_faults(dataset, faults, "prompts", demonstration_column, complete=needs_demonstration)
    faults.settled(dataset)


def find_faults(
    dataset: Dataset, faults: Faults, layout: Layout, demonstration_column: str = "completion", *, complete: bool
) -> None:
    """Check every row of a layout, whose columns are there.

    Args:
        faults: takes what is found.
        complete: whether every row must have a demonstration.
    """
    check = {"documents": _documents, "solutions": _solutions, "comparisons": _comparisons}.get(layout)
    called = faults.called
    columns, fault_of = (
        check(dataset, called) if check else _demonstrations(dataset, demonstration_column, complete, called)
    )
    for row, values in iterate_rows(dataset, columns):
        if fault := fault_of(*values):
            faults.add(row, fault)


def _demonstrations(dataset: Dataset, column: str, complete: bool, called: Called) -> tuple[list[str], FaultOf]:
    has_demonstration = column in dataset.column_names

    def fault_of(prompt: Any, demonstration: Any = None) -> str | None:
        fault = _prompt_fault(called("prompt"), prompt)
        if fault is None and has_demonstration and (complete or demonstration):
            return _demonstration_fault(called(column), demonstration)
        return fault

    return ["prompt", column] if has_demonstration else ["prompt"], fault_of


def _comparisons(dataset: Dataset, called: Called) -> tuple[list[str], FaultOf]:
    """A prompt and two answers that are well formed and not the same; `margin`, which shifts the loss, is a number."""
    columns = ["prompt", "chosen", "rejected"] + ["margin"] * ("margin" in dataset.column_names)
    asked, better, worse, shift = map(called, ("prompt", "chosen", "rejected", "margin"))

    def fault_of(prompt: Any, chosen: Any, rejected: Any, margin: Any = 0.0) -> str | None:
        if not chosen and not rejected:
            return f"the comparison is empty: neither `{better}` nor `{worse}` holds anything; write both, or drop it."
        fault = _prompt_fault(asked, prompt) or _answer_fault(better, chosen) or _answer_fault(worse, rejected)
        if fault is None and chosen == rejected:
            return f"`{better}` and `{worse}` are the same ({chosen!r:.60}): nothing can be learnt; drop the row."
        if fault is None and not (isinstance(margin, int | float) and math.isfinite(margin)):
            return f"`{shift}` is {margin!r:.60}; write how much better `{better}` is, a number, or drop the column."
        return fault

    return columns, fault_of


def _documents(dataset: Dataset, called: Called) -> tuple[list[str], FaultOf]:
    column = called("text")

    def fault_of(text: Any) -> str | None:
        if not isinstance(text, str):
            return f"`{column}` is {text!r:.60}; write a text."
        return None if text.strip() else f"`{column}` is empty."

    return ["text"], fault_of


def _solutions(dataset: Dataset, called: Called) -> tuple[list[str], FaultOf]:
    """A problem, a text, and whether it is correct; `input` may be None or empty, `difficulty` a number or None."""
    optional = [name for name in ("input", "difficulty") if name in dataset.column_names]

    def fault_of(instruction: Any, output: Any, problem: Any, correct: Any, *others: Any) -> str | None:
        for column, text in (("instruction", instruction), ("output", output)):
            if not isinstance(text, str) or not text.strip():
                said = "is missing (None)" if text is None else f"is {text!r:.60}"
                return f"`{called(column)}` {said}; write a text, or drop the row."
        if not isinstance(problem, str | int) or not str(problem).strip():
            column = called("problem_id")
            return f"`{column}` is {problem!r:.60}; write the name or number that the problem's solutions share."
        if not isinstance(correct, bool):
            return f"`{called('is_correct')}` is {correct!r:.60}; write true or false."
        for column, value in zip(optional, others, strict=True):
            if column == "input" and not isinstance(value, str | None):
                return f"`{called(column)}` is {value!r:.60}; write a text, or leave it out."
            if column == "difficulty" and not isinstance(value, int | float | None):
                return f"`{called(column)}` is {value!r:.60}; write a number, or leave it out."
        return None

    return ["instruction", "output", "problem_id", "is_correct", *optional], fault_of


def iterate_rows(dataset: Dataset, columns: list[str], batch_size: int = 1000) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the row number and the values of each row, a thousand at a time so that long texts need little memory.

    Rows are numbered by the column `_row` that `load_splits` adds, or from 1 in a dataset of the user's own.
    """
    numbered = ROW in dataset.column_names
    for start in range(0, len(dataset), batch_size):
        batch = dataset.select_columns([ROW, *columns] if numbered else columns)[start : start + batch_size]
        values = zip(*(batch[name] for name in columns), strict=True)
        yield from zip(batch[ROW] if numbered else itertools.count(start + 1), values, strict=numbered)


def _prompt_fault(column: str, prompt: Any) -> str | None:
    if prompt is None:
        return f"`{column}` is missing (None); write a text or a list of messages."
    if isinstance(prompt, str):
        return None if prompt.strip() else f"`{column}` is empty."
    return _messages_fault(column, prompt)


def _demonstration_fault(column: str, value: Any) -> str | None:
    if value is None:
        return (
            f"the demonstration (`{column}`) is missing (None); write one or drop the row (stage hpt: or set "
            "on_missing_demonstration: rl to train such rows by reinforcement only)."
        )
    if isinstance(value, str):
        return None if value.strip() else f"the demonstration (`{column}`) is empty."
    return _answer_fault(column, value, "demonstration")


def _answer_fault(column: str, value: Any, what: str = "completion") -> str | None:
    if value is None:
        return f"`{column}` is missing (None); write a text or messages, or drop the row."
    if isinstance(value, str):
        return None if value.strip() else f"`{column}` is empty."
    fault = _messages_fault(column, value)
    if fault is None and value[0]["role"] != "assistant":
        return f"`{column}`, message 1 has the role {value[0]['role']!r}; a {what} begins with 'assistant'."
    return fault


def conversation_fault(column: str, messages: Any) -> str | None:
    """What is wrong with a conversation that holds a prompt and an answer of the assistant; None if nothing is."""
    if messages is None:
        return f"`{column}` is missing (None)."
    fault = _messages_fault(column, messages)
    if fault is None and (len(messages) < 2 or messages[-1]["role"] != "assistant"):
        return f"`{column}` must hold a prompt and end with a message of the assistant."
    return fault


def _messages_fault(column: str, messages: Any) -> str | None:
    if not isinstance(messages, list):
        return f"`{column}` is {messages!r:.60}; write a text or a list of messages."
    if not messages:
        return f"`{column}` is an empty list of messages."
    for number, message in enumerate(messages, 1):
        at = f"`{column}`, message {number}"
        if not isinstance(message, dict) or message.keys().isdisjoint({"role", "content"}):
            return f'{at} is {message!r:.60}; write {{"role": "user", "content": "…"}}.'
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            near = difflib.get_close_matches(str(role), ROLES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            return f"{at} has the role {role!r:.60}; {hint}Allowed: {', '.join(ROLES)}."
        calls = message.get("tool_calls")
        if fault := _content_fault(content) or _calls_fault(calls):
            return f"{at} ({role}): {fault}"
        # A turn of the assistant may consist of tool calls alone.
        if not content and not (role == "assistant" and calls) and role != "system":
            return f"{at} ({role}) has no content."
    return None


def _content_fault(content: Any) -> str | None:
    """What is wrong with the content of a message, a text or a list of parts; None if nothing is."""
    if content is None or isinstance(content, str):
        return None
    if not isinstance(content, list):
        return f"`content` is {content!r:.60}; write a text, or a list of parts."
    for number, part in enumerate(content, 1):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            return f'part {number} of `content` is {part!r:.60}; write {{"type": "text", "text": "…"}}.'
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            return f"part {number} of `content` is of type text, and its `text` is {part.get('text')!r:.60}."
    return None


def _calls_fault(calls: Any) -> str | None:
    """What is wrong with the tool calls of a message; None if nothing is."""
    if calls is None:
        return None
    if not isinstance(calls, list):
        return f"`tool_calls` is {calls!r:.60}; write a list of calls."
    for number, call in enumerate(calls, 1):
        function = call.get("function") or call if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return (
                f"call {number} of `tool_calls` is {call!r:.60}; write "
                '{"type": "function", "function": {"name": "…", "arguments": {…}}}.'
            )
    return None

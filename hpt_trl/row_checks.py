"""Checks of rows before training: a faulty one is named with its file, its row and what to write.

TRL finds a bad row only when it reaches it, and without its number.
"""

import difflib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from hpt_trl.errors import UserError
from hpt_trl.sources import ROW, where

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "developer", "user", "assistant", "tool")


def validate_rows(
    dataset: Dataset, source: str, *, demonstration_column: str = "completion", needs_demonstration: bool
) -> None:
    """Check every row: prompt and demonstration are there, not empty and, if messages, well formed.

    Raises:
        UserError: the first faulty row, with the number of the others; or no rows at all.
    """
    if len(dataset) == 0:
        raise UserError(f"{source} has no rows.")
    has_demonstration = demonstration_column in dataset.column_names
    columns = ["prompt", demonstration_column] if has_demonstration else ["prompt"]
    first, others = None, 0
    for row, values in iterate_rows(dataset, columns):
        fault = _prompt_fault(values[0])
        if fault is None and has_demonstration and (needs_demonstration or values[1]):
            fault = _demonstration_fault(demonstration_column, values[1])
        if fault is None:
            continue
        if first is None:
            first = f"{where(source, row)}: {fault}"
        else:
            others += 1
    if first is not None:
        raise UserError(first + (f"\n{others} more of {len(dataset)} rows are faulty." if others else ""))


def validate_lengths(
    dataset: Dataset, source: str, tokenizer: "PreTrainedTokenizerBase", *, longest: int, reason: str
) -> None:
    """Check that no prompt has more than `longest` tokens.

    Args:
        dataset: rows as `to_conversational` returns them.
        reason: where the limit comes from, e.g. `max_position_embeddings 8192 - max_completion_length 1024`.

    Raises:
        UserError: the longest prompt's row, its tokens and the limit.
    """
    found, worst_row, too_long = 0, 0, 0
    batch: list[tuple[int, str]] = []

    def measure() -> None:
        nonlocal found, worst_row, too_long
        tokens = tokenizer(text=[text for _, text in batch], add_special_tokens=False)["input_ids"]
        for (row, _), ids in zip(batch, tokens, strict=True):
            too_long += len(ids) > longest
            if len(ids) > found:
                found, worst_row = len(ids), row
        batch.clear()

    for row, (prompt,) in iterate_rows(dataset, ["prompt"]):
        text = prompt
        if not isinstance(prompt, str):
            text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        batch.append((row, text))
        if len(batch) == 1000:
            measure()
    if batch:
        measure()
    if too_long:
        raise UserError(
            f"{where(source, worst_row)}: the prompt has {found} tokens, more than {longest} ({reason}); {too_long} of "
            f"{len(dataset)} prompts are too long. Shorten or drop them, or lower max_completion_length."
        )


def iterate_rows(dataset: Dataset, columns: list[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the row number and the values of each row, a thousand at a time so that long texts need little memory.

    Rows are numbered by the column `row` that `load_splits` adds, or from 1 in a dataset of the user's own.
    """
    numbered = ROW in dataset.column_names
    for start in range(0, len(dataset), 1000):
        batch = dataset.select_columns([ROW, *columns] if numbered else columns)[start : start + 1000]
        values = zip(*(batch[name] for name in columns), strict=True)
        yield from zip(batch[ROW] if numbered else itertools.count(start + 1), values, strict=numbered)


def _prompt_fault(prompt: Any) -> str | None:
    if prompt is None:
        return "`prompt` is missing (None); write a text or a list of messages."
    if isinstance(prompt, str):
        return None if prompt.strip() else "`prompt` is empty."
    return _messages_fault("prompt", prompt)


def _demonstration_fault(column: str, value: Any) -> str | None:
    if value is None:
        return (
            f"the demonstration (`{column}`) is missing (None); write one, or set on_missing_demonstration: rl to "
            "train such rows by reinforcement only."
        )
    if isinstance(value, str):
        return None if value.strip() else f"the demonstration (`{column}`) is empty."
    fault = _messages_fault(column, value)
    if fault is None and value[0]["role"] != "assistant":
        return f"`{column}`, message 1 has the role {value[0]['role']!r}; a demonstration begins with 'assistant'."
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
            return f"{at} has the role {role!r}; {hint}Allowed: {', '.join(ROLES)}."
        # A turn of the assistant may consist of tool calls alone.
        if not content and not (role == "assistant" and message.get("tool_calls")) and role != "system":
            return f"{at} ({role}) has no content."
    return None

"""Parts of a prompt that known layouts keep in columns of their own, put into it; and rows that are marked as bad.

Alpaca has `instruction` and `input`, others have `system` beside the prompt, KTO's rows a `label`. The trainers read
none of them: a prompt would lose a part of itself, and a bad answer be learnt, without a word.
"""

import logging
from typing import Any

from datasets import Dataset

from hpt_trl.data.objects import with_column
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.data.sources import column_values, where
from hpt_trl.errors import UserError

logger = logging.getLogger(__name__)

_SYSTEM_COLUMNS = ("system", "system_prompt")


def complete_prompts(dataset: Dataset, source: str, mapping: dict[str, str]) -> Dataset:
    """Return the dataset with `input` after each prompt and `system` before it, where it has such columns of texts.

    A prompt that holds the text already stays as it is; a column that `column_mapping` gives another name is left out.

    Raises:
        UserError: a row whose prompt cannot take the text.
    """
    if "prompt" not in dataset.column_names:
        return dataset
    if "input" not in mapping and _is_text(dataset, "input"):
        dataset = _joined(dataset, source, "input", _with_input)
        logger.warning(
            "%s: the text of the column `input` is put after the prompt, as Alpaca means it; to leave it out write "
            "column_mapping: {source_input: input}.",
            source,
        )
    for column in _SYSTEM_COLUMNS:
        if column not in mapping and _is_text(dataset, column):
            dataset = _joined(dataset, source, column, _with_system)
            logger.warning("%s: the column `%s` becomes the system message of each prompt.", source, column)
    return dataset


def refuse_marked_rows(dataset: Dataset, source: str, mapping: dict[str, str]) -> None:
    """Refuse demonstrations that a column `label` marks as bad.

    Raises:
        UserError: the first such row, and how many there are.
    """
    if "label" not in dataset.column_names or "label" in mapping:
        return
    bad = [row for row, (label,) in iterate_rows(dataset, ["label"]) if label is False]
    if bad:
        raise UserError(
            f"{where(source, bad[0])}: `label` is false, and so it is in {len(bad)} of {len(dataset)} rows: rows "
            "marked false would be trained on. Leave them out of the data; if the label means something else, write "
            "column_mapping: {source_label: label}."
        )


def _is_text(dataset: Dataset, column: str) -> bool:
    """Whether a column is there, holds nothing but texts, and at least one that is not blank."""
    if column not in dataset.column_names:
        return False
    values = column_values(dataset, column)
    return all(isinstance(value, str | None) for value in values) and any(value and value.strip() for value in values)


def _joined(dataset: Dataset, source: str, column: str, join: Any) -> Dataset:
    prompts = []
    for row, (prompt, text) in iterate_rows(dataset, ["prompt", column]):
        try:
            prompts.append(join(prompt, (text or "").strip()))
        except ValueError as error:
            raise UserError(
                f"{where(source, row)}: `{column}` belongs to the prompt, but {error}; put it there yourself, or leave "
                f"the column out: column_mapping: {{source_{column}: {column}}}."
            ) from error
    return with_column(dataset.remove_columns("prompt"), "prompt", prompts)


def _with_input(prompt: Any, text: str) -> Any:
    if not text or not prompt:
        return prompt
    if isinstance(prompt, str):
        return prompt if text in prompt else f"{prompt}\n\n{text}"
    last = prompt[-1]
    if not isinstance(last, dict) or last.get("role") != "user" or not isinstance(last.get("content"), str):
        raise ValueError("the prompt does not end with a text of the user")
    return [*prompt[:-1], {**last, "content": _with_input(last["content"], text)}]


def _with_system(prompt: Any, text: str) -> Any:
    # Blank ones too, so that all prompts are messages.
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not text or not messages:
        return messages
    first = messages[0]
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        if first.get("content") == text:
            return messages
        raise ValueError("the prompt has a system message of its own")
    return [{"role": "system", "content": text}, *messages]

"""Parts of a prompt that known layouts keep in columns of their own, put into it; and rows that are marked as bad.

Alpaca has `instruction` and `input`, others have `system` beside the prompt, KTO's rows a `label`. The trainers read
none of them: a prompt would lose a part of itself, and a bad answer be learnt, without a word.
"""

import logging
import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any

from datasets import Dataset

from hpt_trl.data.column_mapping import shortened
from hpt_trl.data.faults import Faults
from hpt_trl.data.objects import column_values, with_column
from hpt_trl.data.reading.places import ROW
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.errors import UserError

logger = logging.getLogger(__name__)

SYSTEM_COLUMNS = ("system", "system_prompt")
# A name in braces that belong to no command of LaTeX.
_BRACED = re.compile(r"(?<![\w}\\{^])\{([A-Za-z_]\w*(?:\.\w+)*)\}(?!\})")
# Columns that say of a demonstration whether it is good.
MARKS = ("label", "is_correct")
GOOD, _BAD = ("true", "1", "1.0"), ("false", "0", "0.0")


def complete_prompts(dataset: Dataset, faults: Faults, left_out: Collection[str]) -> tuple[Dataset, list[str]]:
    """Return the dataset with `input` after each prompt and `system` before it, where it has such columns.

    They are texts or numbers; others are no part of a prompt. A prompt that holds the text as lines of its own stays
    as it is.

    Args:
        faults: takes the rows whose prompt cannot take the text.
        left_out: columns that mean something else: `column_mapping` gives them, or the prompt is written with them.

    Returns:
        The dataset, and the columns that were put into the prompts.
    """
    put: list[str] = []
    if "prompt" not in dataset.column_names:
        return dataset, put
    if "input" not in left_out and _is_part(dataset, "input"):
        dataset = _joined(dataset, faults, "input", _with_input)
        put.append("input")
        logger.warning(
            "%s: the text of the column `input` is put after the prompt, as Alpaca means it; to leave it out write "
            "column_mapping: {source_input: input}.",
            faults.source,
        )
    for column in SYSTEM_COLUMNS:
        if column not in left_out and _is_part(dataset, column):
            dataset = _joined(dataset, faults, column, _with_system)
            put.append(column)
            logger.warning("%s: the column `%s` becomes the system message of each prompt.", faults.source, column)
    return dataset, put


def find_marked_rows(dataset: Dataset, faults: Faults, mapping: dict[str, str]) -> None:
    """Find demonstrations that a column `label` or `is_correct` marks as bad."""
    for column in MARKS:
        if column not in dataset.column_names or column in mapping:
            continue
        labels = [(row, str(label).strip().lower()) for row, (label,) in iterate_rows(dataset, [column])]
        # Classes of more than two kinds mark nothing.
        marks = {label for _, label in labels} <= {*GOOD, *_BAD, "none"}
        bad = [row for row, label in labels if marks and label in _BAD]
        # Of a stream, what leads a piece on has no numbers of its own.
        total = sum(row > 0 for row, _ in labels)
        called = faults.called(column)
        for row in bad:
            faults.add(
                row,
                f"`{called}` is false (or 0), as in {len(bad)} of {total} rows: rows marked false would be "
                f"trained on. Leave them out of the data; if `{called}` means something else, write column_mapping: "
                f"{{source_{called}: {called}}}.",
            )


def _is_part(dataset: Dataset, column: str) -> bool:
    """Whether a column is there, holds nothing but texts and numbers, and at least one that is not blank."""
    if column not in dataset.column_names:
        return False
    values = [value for value in column_values(dataset, column) if value is not None]
    plain = all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in values)
    return plain and any(str(value).strip() for value in values)


def _joined(dataset: Dataset, faults: Faults, column: str, join: Any) -> Dataset:
    prompts = []
    called = faults.called(column)
    for row, (prompt, text) in iterate_rows(dataset, ["prompt", column]):
        try:
            prompts.append(join(prompt, "" if text is None else str(text).strip()))
        except ValueError as error:
            prompts.append(None)
            faults.add(
                row,
                f"`{called}` belongs to the prompt, but {error}; put it there yourself, or leave the column out: "
                f"column_mapping: {{source_{called}: {called}}}.",
            )
    return with_column(dataset.remove_columns("prompt"), "prompt", prompts)


def _with_input(prompt: Any, text: str) -> Any:
    if not text or not prompt or not isinstance(prompt, str | list):
        return prompt
    if isinstance(prompt, str):
        there = re.search(rf"^\s*{re.escape(text)}\s*$", prompt, re.MULTILINE)
        return prompt if there else f"{prompt}\n\n{text}"
    last = prompt[-1]
    if not isinstance(last, dict) or last.get("role") != "user" or not isinstance(last.get("content"), str):
        raise ValueError("the prompt does not end with a text of the user")
    return [*prompt[:-1], {**last, "content": _with_input(last["content"], text)}]


def _with_system(prompt: Any, text: str) -> Any:
    # Blank ones too, so that all prompts are messages.
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not text or not messages or not isinstance(messages, list):
        return messages
    first = messages[0]
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        if first.get("content") == text:
            return messages
        raise ValueError("the prompt has a system message of its own")
    return [{"role": "system", "content": text}, *messages]


def filled_templates(template: str | None, dataset: Dataset) -> list[str | None]:
    """Return a `prompt_template` for each row, with the row's values in place of `{column}`; `{prompt}` stays.

    Text in braces that is no column's name stays as well: a template may ask for `\\boxed{}`.
    """
    if template is None:
        return [None] * len(dataset)
    named = names_columns(template, [name for name in dataset.column_names if name != "prompt"])
    if not named:
        return [template] * len(dataset)
    # In one go: a value may itself hold text in braces.
    pattern = "|".join(re.escape(f"{{{name}}}") for name in named)
    filled: list[str | None] = []
    for _, values in iterate_rows(dataset, named):
        texts = dict(zip(named, map(_as_lines, values), strict=True))
        parts = re.split(f"({pattern})", template)
        filled.append("".join(texts[part[1:-1]] if place % 2 else part for place, part in enumerate(parts)))
    return filled


def names_columns(template: str | None, columns: Sequence[str]) -> list[str]:
    """Those of the columns that a `prompt_template` names."""
    return [name for name in columns if f"{{{name}}}" in (template or "")]


def check_template(template: str | None, columns: Sequence[str]) -> None:
    """Refuse a `prompt_template` that makes the same prompt of every row.

    Raises:
        UserError: it holds neither `{prompt}` nor the name of a column, or a name that is meant for one.
    """
    if template is None:
        return
    if "{prompt}" not in template and not names_columns(template, columns):
        raise UserError(
            f"prompt_template: {template!r:.200} must hold `{{prompt}}`, which stands for the prompt, or the names of "
            f"columns in braces; the columns are {shortened([name for name in columns if name != ROW])}."
        )
    for name in _BRACED.findall(template):
        if name == "prompt" or name in columns:
            continue
        near = get_close_matches(name, [*columns, "prompt"], n=1, cutoff=0.7)
        if "." in name and name.split(".")[0] in columns:
            raise UserError(
                f"prompt_template: `{{{name}}}` names a part of a column; give it a name of its own, and write that: "
                f"column_mapping: {{{name.rpartition('.')[2]}: {name}}}."
            )
        if near:
            raise UserError(f"prompt_template: there is no column `{name}`; did you mean `{{{near[0]}}}`?")


def _as_lines(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return "" if value is None else str(value)

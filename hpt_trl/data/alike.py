"""Prompts and answers all as texts or all as messages, which is how TRL takes them."""

from collections.abc import Sequence

from datasets import Dataset

from hpt_trl.data.objects import replaced
from hpt_trl.data.row_checks import iterate_rows


def as_user(text: str) -> list[dict[str, str]]:
    """A prompt as messages."""
    return [{"role": "user", "content": text}]


def as_assistant(text: str | None) -> list[dict[str, str]] | None:
    """An answer as messages."""
    return None if text is None else [{"role": "assistant", "content": text}]


def alike(rows: Sequence[Dataset], answers: Sequence[str]) -> list[Dataset]:
    """Make messages of texts where other columns, or the same ones of another data set, are messages.

    Args:
        rows: of the data sets of a recipe.
        answers: columns of what follows a prompt.
    """
    kinds = [{name: _kind(one, name) for name in ("prompt", *answers) if name in one.column_names} for one in rows]
    if not {str, list} <= {kind for one in kinds for kind in one.values()}:
        return list(rows)
    made = []
    for one, of_columns in zip(rows, kinds, strict=True):
        for name, kind in of_columns.items():
            if kind is str:
                one = replaced(one, name, as_user if name == "prompt" else as_assistant)
        made.append(one)
    return made


def _kind(rows: Dataset, column: str) -> type | None:
    """The type of the first value of a column that is there."""
    return next((type(value) for _, (value,) in iterate_rows(rows, [column]) if value is not None), None)

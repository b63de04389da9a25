"""The columns that a trainer reads, made of those that the data has: `column_mapping`."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset

from hpt_trl.data.final_answers import final_answer
from hpt_trl.data.objects import column_values, with_column
from hpt_trl.data.reading.places import ROW
from hpt_trl.data.usual_names import guessed
from hpt_trl.errors import UserError

# Columns that are listed in a message.
_LISTED = 30


def map_columns(dataset: Dataset, source: str, mapping: dict[str, str]) -> Dataset:
    """Rename and copy columns.

    A mapped source column is gone under its old name, all others stay.

    Args:
        mapping: column that the trainer reads -> column of the data, which may be a dotted path into a struct.

    Raises:
        UserError: there is no such column, or its values are of several types.
    """
    columns = [name for name in dataset.column_names if name != ROW]
    if mapping and {*mapping} <= {*columns} and not {*map(str, mapping.values())} & {*columns}:
        turned = ", ".join(f"{path}: {target}" for target, path in mapping.items())
        raise UserError(
            "column_mapping: the column that the trainer reads stands first, e.g. column_mapping: "
            f"{{{turned:.200}}}; {source} has {shortened(columns)}."
        )
    renamed: dict[str, str] = {}
    copied: dict[str, list[Any]] = {}
    for target, path in mapping.items():
        if not isinstance(path, str):
            raise UserError(f"column_mapping: `{target}: {path}` must name one column of the data.")
        name, *inner = [path] if path in columns else path.split(".")
        if name not in columns:
            raise missing_column(target, path, source, columns, mapping)
        if target == path:
            continue
        # A rename moves no data; a second use of a column, or a column inside a struct, is copied.
        if not inner and name not in mapping and name not in renamed:
            renamed[name] = target
        else:
            copied[target] = _reach(
                column_values(dataset, name), [name, *inner], f"column_mapping: `{target}: {path}`", source
            )
    replaced = [name for name in columns if name in mapping and mapping[name] != name and name not in renamed]
    dataset = dataset.remove_columns(replaced).rename_columns(renamed)
    for target, values in copied.items():
        # Answers of several types become texts in any case.
        values = [short_answer(value) for value in values] if target == "answer" else values
        try:
            dataset = with_column(dataset, target, values)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UserError(
                f"column_mapping: `{target}: {mapping[target]}`: the values in {source} are of several types "
                f"({str(error).splitlines()[0]}); name a column with the same type in every row."
            ) from error
    return dataset


def _reach(values: list[Any], path: list[str], key: str, source: str) -> list[Any]:
    """Follow `path` (a column and the fields inside it) in each value."""
    for depth, field in enumerate(path[1:], 1):
        fields = dict.fromkeys(name for value in values if isinstance(value, dict) for name in value)
        if field not in fields:
            found = f"it holds {', '.join(fields)}" if fields else "it is not a struct"
            raise UserError(f"{key}: {source} has `{'.'.join(path[:depth])}`, but {found}.")
        values = [None if value is None else value.get(field) for value in values]
    return values


def missing_column(
    target: str,
    path: str,
    source: str,
    columns: list[str],
    mapping: dict[str, str],
    others: Sequence[str] = (),
) -> UserError:
    """Returns (does not raise) the error about a column that the data lacks, with the mapping that may be meant.

    Args:
        others: further columns that the trainer reads and the data lacks.
    """
    suggested = dict(mapping)
    for name, looked_for in ((target, path), *((other, other) for other in others)):
        suggested[name] = guessed(name, looked_for, columns, suggested.values()) or "<column>"
    suggestion = ", ".join(f"{key}: {value}" for key, value in suggested.items())
    return UserError(
        f"{source} has no column `{path}`; it has {shortened(columns)}. Write, e.g. column_mapping: {{{suggestion}}}"
    )


def short_answer(value: Any) -> str | None:
    """Return the final answer of a worked solution, or the text itself where it gives none."""
    if value is None:
        return None
    text = str(value).strip()
    found = final_answer(text)
    return text if found is None else found


def shortened(columns: list[str]) -> str:
    """The names of columns for a message, of many the first."""
    names = [f"{name:.60}" for name in columns[:_LISTED]]
    return ", ".join(names) + (f" and {len(columns) - _LISTED} others" if len(columns) > _LISTED else "")

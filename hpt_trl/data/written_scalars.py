"""Columns of numbers and truth values that a file could only hold as text, as every column of a .csv file."""

import json
from collections.abc import Collection
from typing import Any

import pyarrow as pa
from datasets import Dataset, Value

from hpt_trl.data.faults import Faults
from hpt_trl.data.layout_names import Layout
from hpt_trl.data.objects import column_values, with_column
from hpt_trl.data.reading.places import ROW

# Those that the trainers read as such, and the layout of which they are; all other texts stay texts, as answers (`007`)
# have to.
_COLUMNS: dict[str, Layout] = {"is_correct": "solutions", "margin": "comparisons", "difficulty": "solutions"}
_TEXT = Value("string")


def read_scalars(dataset: Dataset, layouts: Collection[Layout], faults: Faults) -> Dataset:
    """The dataset with these columns as numbers or truth values (pandas' `True` too), where their texts are such.

    Args:
        layouts: that the rows may have. Of their columns one number shows what is meant: other texts are faults.
        faults: takes the rows with other texts. Where all are others, the column stays for the check of the rows.
    """
    for name, layout in _COLUMNS.items():
        if name not in dataset.column_names:
            continue
        kind = dataset.features[name]
        if isinstance(kind, Value) and kind.dtype.startswith("decimal"):
            dataset = dataset.cast_column(name, Value("float64"))
        if dataset.features[name] != _TEXT:
            continue
        texts = column_values(dataset, name)
        values = [None if text is None else _scalar(text) for text in texts]
        odd = [place for place, text in enumerate(texts) if text is not None and values[place] is None]
        if odd and (layout not in layouts or not any(value is not None for value in values)):
            continue
        try:
            read = with_column(dataset.remove_columns(name), name, values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            continue
        for place in odd:
            said = "but other rows hold a number or a truth value; write one, or drop the row."
            faults.add(dataset[ROW][place], f"`{faults.called(name)}` is {texts[place]!r:.60}, {said}")
        dataset = read
    return dataset


def _scalar(text: str) -> bool | int | float | None:
    """The number or truth value that a text is; None where it is none."""
    try:
        value: Any = json.loads(text.strip().lower())
    except ValueError:
        return None
    return value if isinstance(value, bool | int | float) else None

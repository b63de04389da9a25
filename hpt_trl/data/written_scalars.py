"""Columns of numbers and truth values that a file could only hold as text, as every column of a .csv file."""

import json
from typing import Any

import pyarrow as pa
from datasets import Dataset, Value

from hpt_trl.data.objects import column_values, with_column

# Those that the trainers read as such; all other texts stay texts, as answers (`007`) have to.
_COLUMNS = ("is_correct", "margin", "difficulty")


def read_scalars(dataset: Dataset) -> Dataset:
    """The dataset with these columns as numbers or truth values, where all their texts are such (pandas' `True` too).

    Others stay as they are, for the check of the rows to name.
    """
    for name in _COLUMNS:
        if name not in dataset.column_names or dataset.features[name] != Value("string"):
            continue
        try:
            values = [None if text is None else _scalar(text) for text in column_values(dataset, name)]
            dataset = with_column(dataset.remove_columns(name), name, values)
        except (ValueError, pa.ArrowInvalid, pa.ArrowTypeError):
            continue
    return dataset


def _scalar(text: str) -> Any:
    value = json.loads(text.strip().lower())
    if not isinstance(value, bool | int | float):
        raise ValueError(f"{text!r} is no number")
    return value

"""Columns of objects (messages, tool schemas, call arguments) that come out of Arrow as they were in the file.

Arrow stores objects as structs, which have the same keys in every row and one type for each: a row without a key gets
it as null, an integer beside a fraction becomes one, and keys take the order of the first row. A chat template shows
all of that to the model. Objects of one shape are stored so, others as JSON text (`datasets.Json`), which is decoded
when rows are read.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from datasets import Dataset

logger = logging.getLogger(__name__)

# Rows of a chunk: the texts of one chunk must not reach Arrow's limit of 2 GiB.
_CHUNK = 10_000
_LOOKED_AT = 1000


def arrow_column(values: list[Any]) -> pa.Array | pa.ChunkedArray:
    """Return a column of Python values in Arrow; objects of several shapes as JSON.

    Raises:
        pa.ArrowInvalid, pa.ArrowTypeError, OverflowError: values of several types that are no objects.
    """
    if not _holds_objects(values) or _Shape().takes_all(values):
        return pa.array(values)
    kinds = {type(value) for value in values if value is not None}
    if kinds == {dict}:
        return _chunked(values, _json)
    if kinds == {list}:
        return _chunked(values, _list_of_json)
    # Text in one row and messages in another: Arrow's own error names the row.
    return pa.array(values)


def with_column(dataset: Dataset, name: str, values: list[Any]) -> Dataset:
    """Return the dataset with a new column, whose objects stay as they are."""
    return dataset.add_column(name, arrow_column(values))


def column_values(dataset: Dataset, column: str) -> list[Any]:
    """Return a column as a list, without reading any other."""
    return dataset.select_columns(column)[:][column]


def warn_of_filled_objects(dataset: Dataset, source: str) -> None:
    """Say where tool schemas and call arguments were stored as structs, so that keys never written are null by now."""
    for column in dataset.column_names:
        # Of a message's own keys a template asks whether they hold anything; of arguments it shows them all.
        shown = "" if column == "tools" else "tool_calls."
        fields = {name for name in _struct_fields(dataset.data.schema.field(column).type) if name.startswith(shown)}
        if not fields or (shown and "tool_calls" not in _struct_fields(dataset.data.schema.field(column).type)):
            continue
        found: set[str] = set()
        for value in dataset.select(range(min(len(dataset), _LOOKED_AT))).select_columns(column)[:][column]:
            _null_keys(value, "", found)
        if foreign := sorted(found & fields):
            logger.warning(
                "%s: the objects in `%s` have keys that are null (%s): a table gives each object the keys of all "
                "others, and a chat template shows them to the model. Where they are not in the original, give the "
                "data as .jsonl, or store the column as datasets.List(datasets.Json()).",
                source,
                column,
                ", ".join(foreign[:5]) + (", …" if len(foreign) > 5 else ""),
            )


class _Shape:
    """What the values at one place have in common: the keys of objects and their order, or one type."""

    def __init__(self) -> None:
        self.kind: Any = None
        self.inner: dict[Any, _Shape] = {}

    def takes_all(self, values: list[Any]) -> bool:
        return all(self._takes(value) for value in values)

    def _takes(self, value: Any) -> bool:
        if value is None:
            return True
        # An object without keys would be null in a parquet file.
        kind = (tuple(value) or None) if isinstance(value, dict) else type(value)
        if self.kind is None:
            self.kind = kind
        if kind is None or kind != self.kind:
            return False
        if isinstance(value, dict):
            return all(self._at(key)._takes(inner) for key, inner in value.items())
        return self._at(0).takes_all(value) if isinstance(value, list) else True

    def _at(self, key: Any) -> "_Shape":
        if key not in self.inner:
            self.inner[key] = _Shape()
        return self.inner[key]


def _holds_objects(values: list[Any]) -> bool:
    return any(
        isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict | list) for item in value))
        for value in values
    )


def _chunked(values: list[Any], build: Any) -> pa.ChunkedArray:
    return pa.chunked_array([build(values[start : start + _CHUNK]) for start in range(0, len(values), _CHUNK)])


def _json(values: list[Any]) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array([_text(value) for value in values], pa.string()))


def _list_of_json(values: list[Any]) -> pa.Array:
    texts = pa.array(
        [None if value is None else [_text(item) for item in value] for value in values], pa.list_(pa.string())
    )
    items = pa.ExtensionArray.from_storage(pa.json_(), texts.values)
    return pa.ListArray.from_arrays(texts.offsets, items, pa.list_(pa.json_()), mask=texts.is_null())


def _text(value: Any) -> str | None:
    if value is None:
        return None
    _check_integers(value)
    return json.dumps(value, ensure_ascii=False)


def _check_integers(value: Any) -> None:
    """The reader of `datasets.Json` knows integers of 64 bits."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise OverflowError(f"{value} has more than 64 bits")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_integers(inner)


def _struct_fields(kind: pa.DataType) -> set[str]:
    """Paths of the fields of structs inside a type; nothing where there are none."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _struct_fields(kind.value_type)
    if not pa.types.is_struct(kind):
        return set()
    found = set()
    for field in kind:
        found |= {field.name} | {f"{field.name}.{inner}" for inner in _struct_fields(field.type)}
    return found


def _null_keys(value: Any, path: str, found: set[str]) -> None:
    if isinstance(value, list):
        for item in value:
            _null_keys(item, path, found)
    elif isinstance(value, dict):
        for key, inner in value.items():
            name = f"{path}.{key}" if path else key
            if inner is None:
                found.add(name)
            else:
                _null_keys(inner, name, found)


def replaced(dataset: Dataset, column: str, change: Callable[[Any], Any]) -> Dataset:
    """The dataset with the values of a column changed."""
    values = column_values(dataset, column)
    changed = [change(value) for value in values]
    return dataset if changed == values else with_column(dataset.remove_columns(column), column, changed)

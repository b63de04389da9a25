"""Local files and folders of them, read into one table whose rows know their file and line."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from hpt_trl.data.names import kind_of
from hpt_trl.data.objects import arrow_column
from hpt_trl.data.reading.joining import joined
from hpt_trl.data.reading.json_files import read_json
from hpt_trl.data.reading.places import ROW, Piece, Rows, Source, refuse_own_numbers
from hpt_trl.data.reading.soundness import Fault, row_fault, wide_fault
from hpt_trl.data.reading.tables import parquet_rows, read_delimited, read_parquet, read_text
from hpt_trl.data.reading.text import UNREADABLE
from hpt_trl.errors import UserError

_MISFIT = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError)


def read_files(paths: list[Path], name: str) -> Rows:
    """Rows of files, of one kind or several, in their order; a column that a file lacks is None in its rows.

    Faulty rows are left out, and told by number.

    Args:
        name: of all of them, as messages have it.

    Raises:
        UserError: a file cannot be read, or the values of a column have no type in common.
    """
    pieces: list[Piece] = []
    parts: list[Dataset] = []
    # Rows of all text files until the next table: together they have one type in each column.
    records: list[tuple[int, Any]] = []
    names: list[str] = []
    last = 0
    faults: dict[int, str] = {}

    def flush() -> None:
        if records:
            source = Source(name, pieces)
            table, unread = table_of(records, source)
            parts.append(table)
            faults.update(unread)
            names.append(source.place(records[0][0]).rpartition(", ")[0])
            records.clear()

    for path in paths:
        shown = name if len(paths) == 1 else str(path)
        try:
            if kind_of(path.name) == ".parquet":
                table = read_parquet(path)
                pieces.append(Piece(shown, path, before=last))
                refuse_own_numbers(table.column_names, shown)
                flush()
                names.append(shown)
                parts.append(table.add_column(ROW, range(last + 1, last + 1 + len(table))))
                last += len(table)
                continue
            rows, by_line = rows_of(path)
            pieces.append(Piece(shown, path, by_line, last))
            records += [(number + last, row) for number, row in rows]
            last = records[-1][0] if records else last
        except (*UNREADABLE, pa.ArrowInvalid) as error:
            raise UserError(f"dataset_name: {shown} cannot be read: {error}") from error
    flush()
    return Rows(joined(parts, names) if parts else Dataset.from_dict({ROW: []}), last, tuple(pieces), faults)


def rows_of(path: Path) -> tuple[Iterator[tuple[int, Any]], bool]:
    """Rows of a file one by one with their numbers, or what is wrong with them, and whether these are lines.

    Raises:
        UserError: also on the way, as the readers do.
        OSError, EOFError, zlib.error, pa.ArrowInvalid: the file cannot be read.
    """
    kind = kind_of(path.name)
    if kind in (".csv", ".tsv"):
        return read_delimited(path), True
    if kind == ".parquet":
        return parquet_rows(path), False
    return (read_text(path), True) if kind == ".txt" else read_json(path)


def table_of(records: list[tuple[int, Any]], source: Source) -> tuple[Dataset, dict[int, str]]:
    """A table of numbered rows, in which a key that a row lacks is None, and what is wrong with the other rows."""
    faults: dict[int, str] = {}
    rows: dict[int, dict[str, Any]] = {}
    for number, row in records:
        if isinstance(row, Fault):
            faults[number] = row
        elif not isinstance(row, dict):
            faults[number] = f'{row!r:.80} is not an object; write {{"prompt": …}}.'
        elif fault := row_fault(row):
            faults[number] = fault
        else:
            rows[number] = row
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    columns = {key: _column(key, rows, source, faults) for key in keys}
    refuse_own_numbers(columns, source)
    kept = [place for place, number in enumerate(rows) if number not in faults]
    table = Dataset(pa.table({**columns, ROW: pa.array(list(rows), pa.int64())}))
    return table if len(kept) == len(rows) else table.select(kept), faults


def _column(
    key: str, rows: dict[int, dict[str, Any]], source: Source, faults: dict[int, str]
) -> pa.Array | pa.ChunkedArray:
    """The values of a column; `faults` takes the rows whose value is of another kind than most are."""
    values = [row.get(key) for row in rows.values()]
    if (column := _one_column(values)) is not None:
        return column
    if all(value is None or (type(value) is int and 0 <= value < 2**64) for value in values):
        return pa.array(values, pa.uint64())
    for number, value in zip(rows, values, strict=True):
        if fault := wide_fault(key, value):
            faults.setdefault(number, fault)
    values = [None if number in faults else value for number, value in zip(rows, values, strict=True)]
    if (column := _one_column(values)) is not None:
        return column
    kinds = [_kind(value) for value in values]
    ((usual, _),) = Counter(kind for kind in kinds if kind is not None).most_common(1)
    fitting = [value if kind in (usual, None) else None for value, kind in zip(values, kinds, strict=True)]
    numbers = list(rows)
    try:
        column = arrow_column(fitting)
    except _MISFIT as error:
        index = _first_misfit(fitting)
        before = arrow_column(fitting[:index]).type
        raise UserError(
            f"{source.place(numbers[index])}: `{key}` is {fitting[index]!r:.80}, but the rows before it hold "
            f"{before}; write the same type in every row."
        ) from error
    for number, value, kind in zip(numbers, values, kinds, strict=True):
        if kind not in (usual, None):
            faults.setdefault(
                number,
                f"`{key}` is {value!r:.80}, but other rows hold {column.type}; write the same type in every row.",
            )
    return column


def _one_column(values: list[Any]) -> pa.Array | pa.ChunkedArray | None:
    try:
        return arrow_column(values)
    except _MISFIT:
        return None


def _kind(value: Any) -> Any:
    """What is alike in all values of a column, as far as the first item of a list; None for what goes with all."""
    if value is None or value == []:
        return None
    if isinstance(value, list):
        return list, _kind(value[0])
    return float if type(value) is int else type(value)


def _first_misfit(values: list[Any]) -> int:
    """Return the index of the value that Arrow cannot add to those before it."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            arrow_column(values[:middle])
            low = middle
        except _MISFIT:
            high = middle
    return low

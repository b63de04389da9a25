"""Local files and folders of them, read into one table whose rows know their file and line."""

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
from hpt_trl.data.reading.soundness import row_fault
from hpt_trl.data.reading.tables import read_delimited, read_parquet, read_text
from hpt_trl.data.reading.text import UNREADABLE
from hpt_trl.errors import UserError

_MISFIT = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError)


def read_files(paths: list[Path], name: str) -> Rows:
    """Rows of files, of one kind or several, in their order; a column that a file lacks is None in its rows.

    Args:
        name: of all of them, as messages have it.

    Raises:
        UserError: a file cannot be read, or a row of it is faulty.
    """
    pieces: list[Piece] = []
    parts: list[Dataset] = []
    # Rows of all text files until the next table: together they have one type in each column.
    records: list[tuple[int, Any]] = []
    names: list[str] = []
    last = 0

    def flush() -> None:
        if records:
            source = Source(name, pieces)
            parts.append(_table(records, source))
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
            rows, by_line = _rows_of(path)
            pieces.append(Piece(shown, path, by_line, last))
            records += [(number + last, row) for number, row in rows]
            last = records[-1][0] if records else last
        except (*UNREADABLE, pa.ArrowInvalid) as error:
            raise UserError(f"dataset_name: {shown} cannot be read: {error}") from error
    flush()
    return Rows(joined(parts, names) if parts else Dataset.from_dict({ROW: []}), last, tuple(pieces))


def _rows_of(path: Path) -> tuple[Iterator[tuple[int, Any]], bool]:
    kind = kind_of(path.name)
    if kind in (".csv", ".tsv"):
        return read_delimited(path), True
    return (read_text(path), True) if kind == ".txt" else read_json(path)


def _table(rows: list[tuple[int, Any]], source: Source) -> Dataset:
    """Build a table from numbered rows; a key that a row lacks is None there."""
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError(f'{source.place(number)}: {row!r:.80} is not an object; write {{"prompt": …}}.')
        if fault := row_fault(row):
            raise UserError(f"{source.place(number)}: {fault}")
    columns = {}
    for key in dict.fromkeys(key for _, row in rows for key in row):
        values = [row.get(key) for _, row in rows]
        try:
            columns[key] = arrow_column(values)
        except _MISFIT as error:
            index = _first_misfit(values)
            before = arrow_column(values[:index]).type
            raise UserError(
                f"{source.place(rows[index][0])}: `{key}` is {values[index]!r:.80}, but the rows before it hold "
                f"{before}; write the same type in every row."
            ) from error
    refuse_own_numbers(columns, source)
    columns[ROW] = pa.array([number for number, _ in rows], pa.int64())
    return Dataset(pa.table(columns))


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

"""Files of JSON: one object a line, or one list.

They are read line by line here rather than by a builder: a broken line must be named, no text may turn into a date
because it looks like one, and no object gets the keys of others.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from datasets import Dataset

from hpt_trl.data.objects import arrow_column
from hpt_trl.data.reading.places import ROW, Piece, Rows, Source, refuse_own_numbers
from hpt_trl.errors import UserError
from hpt_trl.files import parsed_json


def read_json(name: str, path: Path) -> Rows:
    """Rows of a .jsonl, .jsonl.gz or .json file, their objects as they stand there.

    Raises:
        UserError: a line that is no object, or a value whose type does not fit the rows before it.
        OSError, EOFError: the file cannot be read.
    """
    array = _json_array(name, path) if path.suffix == ".json" else None
    if array is not None:
        return _rows_of(list(enumerate(array, 1)), name, Piece(name, path))
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return _rows_of(list(_json_lines(name, file)), name, Piece(name, path, by_line=True))


def _json_array(name: str, path: Path) -> list[Any] | None:
    """Return the rows of a .json file that holds one list, also as `examples` of one object (VRAG, ViDoSeek).

    None where it holds JSON lines.
    """
    text = path.read_bytes()
    if text.lstrip()[:1] == b"{":
        try:
            value = parsed_json(text)
        except ValueError:
            # More than one object, or a broken line, which its reader names.
            return None
        examples = value.get("examples")
        return examples if isinstance(examples, list) else None
    if text.lstrip()[:1] != b"[":
        return None
    try:
        return parsed_json(text)
    except ValueError as error:
        raise UserError(f"dataset_name: {name} is not valid JSON: {error}") from error


def _json_lines(name: str, file: BinaryIO | gzip.GzipFile) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = parsed_json(line)
        except UnicodeDecodeError as error:
            raise UserError(f"{name}, line {number}: not UTF-8 text ({error.reason} at byte {error.start}).") from error
        except json.JSONDecodeError as error:
            shown = line[:80].decode(errors="replace").rstrip()
            raise UserError(
                f"{name}, line {number}: not valid JSON ({error.msg}, character {error.pos + 1}): {shown}\n"
                "Every line must be one JSON object."
            ) from error
        # Nested too deep, or a whole number of more digits than Python reads.
        except ValueError as error:
            raise UserError(f"{name}, line {number}: {error}.") from error
        yield number, row


def _rows_of(rows: list[tuple[int, Any]], name: str, piece: Piece) -> Rows:
    """Build a dataset from numbered rows; a key that a row lacks is None there."""
    source = Source(name, [piece])
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError(f'{source.place(number)}: {row!r:.80} is not an object; write {{"prompt": …}}.')
    columns = {}
    for key in dict.fromkeys(key for _, row in rows for key in row):
        values = [row.get(key) for _, row in rows]
        try:
            columns[key] = arrow_column(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            index = _first_misfit(values)
            before = arrow_column(values[:index]).type
            raise UserError(
                f"{source.place(rows[index][0])}: `{key}` is {values[index]!r:.80}, but the rows before it hold "
                f"{before}; write the same type in every row."
            ) from error
    refuse_own_numbers(columns, source)
    columns[ROW] = pa.array([number for number, _ in rows], pa.int64())
    return Rows(Dataset(pa.table(columns)), rows[-1][0] if rows else 0, (piece,))


def _first_misfit(values: list[Any]) -> int:
    """Return the index of the value that Arrow cannot add to those before it."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            arrow_column(values[:middle])
            low = middle
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            high = middle
    return low

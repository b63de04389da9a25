"""Tables: delimited text, whose values all stay texts, lines of plain text, and parquet."""

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pyarrow as pa
from datasets import Dataset, Features

from hpt_trl.data.objects import arrow_column
from hpt_trl.data.reading.soundness import Fault
from hpt_trl.data.reading.text import lines
from hpt_trl.errors import UserError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

# Rows that are decoded at once.
_BATCH = 1000


def read_delimited(path: Path) -> Iterator[tuple[int, dict[str, str | None] | Fault]]:
    """Rows of a .csv or .tsv file, each with the line on which it begins; `Fault` for one of more or fewer fields.

    By Python's own reader rather than the builder of `datasets`, which names no line. All values are texts, as they
    stand there (`007`, `NA`, dates); an empty field is None, a blank line no row. A column without a name is called as
    pandas does (`Unnamed: 0`). A .csv file is separated by what its header has
    most of, commas, semicolons or tabs.

    Raises:
        UserError: no header, two columns of one name, a quote without its end.
        OSError, EOFError, zlib.error: the file cannot be read.
    """
    csv.field_size_limit(sys.maxsize)
    text = lines(path, newline="")
    header = next(text, "")
    separator = "\t" if ".tsv" in path.name.lower() else max(",;\t", key=header.count)
    records = csv.reader(chain([header], text), delimiter=separator, strict=True)
    begins = 1
    try:
        names = [name.strip() or f"Unnamed: {place}" for place, name in enumerate(next(records, []))]
        if not names:
            raise UserError(f"dataset_name: {path} has no header: its first line names the columns.")
        if doubled := [name for name, count in Counter(names).items() if count > 1]:
            raise UserError(f"{path}, line 1: the column `{doubled[0]:.60}` is there twice; give each its own name.")
        begins = records.line_num + 1
        for record in records:
            if record and len(record) != len(names):
                fault = f"{len(record)} fields, but the header has {len(names)} ({', '.join(names):.120}); put a field "
                yield begins, Fault(f"{fault}that holds {separator!r} or a line break into double quotes.")
            elif record:
                yield begins, {name: value or None for name, value in zip(names, record, strict=True)}
            begins = records.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {begins}: the row that begins here cannot be read ({error}). A field in double quotes ends "
            'with one, and a quote inside it is written twice ("").'
        ) from error


def read_text(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a .txt file that are not blank, each a document (`text`), with their numbers.

    Raises:
        UserError: a line that is no text.
        OSError, EOFError, zlib.error: the file cannot be read.
    """
    return (
        (number, {"text": line.rstrip("\n")})
        for number, line in enumerate(lines(path, newline=None), 1)
        if line.strip()
    )


def same_columns(paths: list[Path]) -> list[int]:
    """The number of rows of each .parquet file; none where their columns differ, or `datasets` cannot read them."""
    import pyarrow.parquet as pq

    try:
        files = [pq.ParquetFile(path) for path in paths]
    except (OSError, pa.ArrowInvalid):
        return []
    same = all(file.schema_arrow.equals(files[0].schema_arrow) for file in files)
    same = same and all(map(_is_known, files[0].schema_arrow))
    return [file.metadata.num_rows for file in files] if same else []


def read_parquet(path: Path) -> Dataset:
    """The table of a .parquet file.

    Raises:
        OSError, pa.ArrowInvalid: the file cannot be read.
    """
    file = _opened(path)
    # Whole row groups decode at once into several times their size; batches do not.
    table = pa.Table.from_batches(file.iter_batches(batch_size=_BATCH), schema=file.schema_arrow)
    # A flipped byte shows here, in texts that are no UTF-8, or only where a row is read.
    table.validate(full=True)
    return Dataset(_fitted(table))


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a .parquet file one by one, numbered from 1.

    Raises:
        OSError, pa.ArrowInvalid: the file cannot be read.
    """
    last = 0
    for batch in _opened(path).iter_batches(batch_size=_BATCH):
        batch.validate(full=True)
        # Without the features that `datasets` wrote, by which it would decode every picture.
        table = _fitted(pa.Table.from_batches([batch])).replace_schema_metadata(None)
        columns = Dataset(table)[:]
        for values in zip(*columns.values(), strict=True):
            last += 1
            yield last, dict(zip(columns, values, strict=True))


def _fitted(table: pa.Table) -> pa.Table:
    """The table in the types that `datasets` knows: maps (Spark's) become objects, and UUIDs texts."""
    for place, field in enumerate(table.schema):
        if not _is_known(field):
            values = table.column(place).to_pylist(maps_as_pydicts="lossy")
            table = table.set_column(place, field.name, arrow_column([_plain(value) for value in values]))
    return table


def _is_known(field: pa.Field) -> bool:
    try:
        Features.from_arrow_schema(pa.schema([field]))
    except ValueError:
        return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, UUID) else value


def _opened(path: Path) -> "ParquetFile":
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, memory_map=True)
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(f"the name of a column is no UTF-8 ({error.reason})") from error
    if broken := [name for name in file.schema_arrow.names if "\0" in name]:
        raise pa.ArrowInvalid(f"the column {broken[0]!r:.60} has a null byte in its name")
    return file

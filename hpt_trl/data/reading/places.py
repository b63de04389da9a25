"""Where a row comes from: its number in the data, and the file and line that the number leads to."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from datasets import Dataset

from hpt_trl.errors import UserError

# Column with the number of each row, by which messages name it; data of several pieces (files, splits) is numbered
# through, so that a number is one row's.
ROW = "_row"


@dataclass(frozen=True)
class Piece:
    """A file or split of some data.

    Attributes:
        name: as messages have it, where the data has several pieces.
        path: the file; None for what is no file.
        by_line: its rows are numbered by their line; else one by one.
        before: the greatest number of the pieces before it.
        entry: of a mixture, the data set that it is of.
    """

    name: str
    path: Path | None = None
    by_line: bool = False
    before: int = 0
    entry: str = ""


class Source(str):
    """The name of some data as messages have it, which knows the pieces that the numbers of its rows lead to.

    Attributes:
        pieces: of the data.
        faults: what is wrong with rows that could not be read, by their numbers.
    """

    pieces: tuple[Piece, ...]
    faults: Mapping[int, str]

    def __new__(cls, name: str, pieces: Sequence[Piece] = (), faults: Mapping[int, str] | None = None) -> "Source":
        source = super().__new__(cls, name)
        source.pieces, source.faults = tuple(pieces), faults or {}
        return source

    def called(self, name: str) -> "Source":
        """The same data under another name."""
        return Source(name, self.pieces, self.faults)

    def piece_of(self, row: int) -> Piece | None:
        """The piece that a row is of; None where the data is one that is no file."""
        place = bisect_left([piece.before for piece in self.pieces], row) - 1
        return self.pieces[place] if self.pieces else None

    def origin(self, row: int) -> tuple[str, int]:
        """The file or split of a row, and its number there, by which it is known from any slice."""
        piece = self.piece_of(row)
        return (str(self), row) if piece is None else (str(piece.path or piece.name), row - piece.before)

    def place(self, row: int) -> str:
        """Name a row: `data.jsonl, line 3`, `openai/gsm8k (train), row 3`; of several files by its own alone."""
        piece = self.piece_of(row)
        if piece is None:
            return f"{self}, row {row}"
        named = piece.name if len(self.pieces) > 1 else str(self)
        return f"{named}, {'line' if piece.by_line else 'row'} {row - piece.before}"


def shares(source: str, numbers: Sequence[int]) -> dict[str, int]:
    """How many of the numbered rows are of which data set of a mixture; nothing where the data is one."""
    pieces = source.pieces if isinstance(source, Source) else ()
    if len({piece.entry for piece in pieces}) < 2:
        return {}
    found = np.searchsorted([piece.before for piece in pieces], np.asarray(numbers)) - 1
    counts = dict.fromkeys((piece.entry for piece in pieces), 0)
    for place, count in zip(*np.unique(found, return_counts=True), strict=True):
        counts[pieces[place].entry] += int(count)
    return counts


@dataclass(frozen=True)
class Rows:
    """Rows with their numbers in a column `_row`.

    Attributes:
        pieces: what the numbers lead to; none where they are those of one thing that is no file.
        last: the greatest number that a row of the whole can have.
        faults: what is wrong with rows that could not be read, by their numbers.
    """

    dataset: Dataset
    last: int
    pieces: tuple[Piece, ...] = ()
    faults: Mapping[int, str] = field(default_factory=dict)

    def after(self, last: int, name: str) -> "Rows":
        """The same rows as a further piece of some data whose greatest number so far is `last`.

        Args:
            name: of the piece, where it is none of files.
        """
        pieces = tuple(replace(piece, before=piece.before + last) for piece in self.pieces or (Piece(name),))
        dataset = self.dataset
        if last:
            dataset = dataset.remove_columns(ROW).add_column(ROW, [number + last for number in dataset[ROW]])
        return Rows(dataset, self.last + last, pieces, {row + last: text for row, text in self.faults.items()})


def where(source: str, row: int) -> str:
    """Name a row of some data (see `Source.place`)."""
    return source.place(row) if isinstance(source, Source) else f"{source}, row {row}"


def numbered(dataset: Dataset, source: str, pieces: Sequence[Piece] = ()) -> Rows:
    """Rows numbered one by one.

    Args:
        source: what messages name.
        pieces: the files that they are of.

    Raises:
        UserError: there is a column `_row` already.
    """
    refuse_own_numbers(dataset.column_names, source)
    rows = dataset.add_column(ROW, range(1, len(dataset) + 1))
    return Rows(rows, len(dataset), tuple(pieces))


def refuse_own_numbers(columns: Iterable[str], source: str) -> None:
    """Keep the name of the rows' numbers free.

    Raises:
        UserError: there is a column `_row` already.
    """
    if ROW in columns:
        raise UserError(
            f"{source}: the column `{ROW}` has the name of that in which each row gets its number; give it another "
            "name in the data."
        )

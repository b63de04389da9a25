"""Faulty rows of one source, told together."""

import logging
from collections.abc import Mapping

from datasets import Dataset

from hpt_trl.data.arguments import ERROR
from hpt_trl.data.reading.places import ROW, Source, where
from hpt_trl.errors import UserError

logger = logging.getLogger(__name__)

# Faults that an error shows, and a warning.
_SHOWN, _EXAMPLES = 5, 3


class Faults:
    """What is wrong with the rows of a source; of each row the first that is found.

    Args:
        source: the name that messages use, with those that could not be read.
        policy: `on_bad_row` of the recipe: whether they are an error, or dropped.
        names: column that a trainer reads -> the column of the file that it is made of, where that is another.
    """

    def __init__(self, source: str, policy: str = ERROR, names: Mapping[str, str] | None = None):
        self.source, self.policy = source, policy
        self.names = dict(names or {})
        self.found: dict[int, str] = dict(source.faults) if isinstance(source, Source) else {}
        self.unread = len(self.found)

    def called(self, column: str) -> str:
        """What a column is called in the file."""
        return self.names.get(column, column)

    def add(self, row: int, text: str) -> None:
        """Notes what is wrong with a row, by its number in the source."""
        self.found.setdefault(row, text)

    def settled(self, rows: Dataset) -> Dataset:
        """The rows without the faulty ones, which a warning counts.

        Raises:
            UserError: the first faulty ones and how many there are, if they are not to be dropped, or no other is left.
        """
        if not self.found:
            return rows
        every = len(rows) + self.unread
        if self.policy == ERROR:
            lines = self._lines(_SHOWN)
            others = len(self.found) - len(lines)
            if others:
                lines.append(f"{others} more of {every:,} rows are faulty.")
            if len(self.found) < every:
                lines.append("`on_bad_row: drop` leaves faulty rows out.")
            raise UserError("\n".join(lines))
        kept = [place for place, number in enumerate(rows[ROW]) if number not in self.found]
        lines = self._lines(_EXAMPLES)
        if not kept:
            raise UserError("\n".join([*lines, f"All {every:,} rows are faulty: on_bad_row: drop leaves none."]))
        logger.warning(
            "%s: %d of %d rows are faulty and left out (on_bad_row: drop), such as\n%s",
            self.source,
            every - len(kept),
            every,
            "\n".join(lines),
        )
        return rows.select(kept)

    def _lines(self, most: int) -> list[str]:
        # Of rows with the same fault the first.
        first = {text: number for number, text in sorted(self.found.items(), reverse=True)}
        shown = sorted((number, text) for text, number in first.items())[:most]
        return [f"{where(self.source, number)}: {text}" for number, text in shown]

"""Faulty rows of one source, told together."""

from typing import NoReturn

from datasets import Dataset

from hpt_trl.data.reading.places import where
from hpt_trl.errors import UserError

# Faults that a message shows.
_SHOWN = 5


class Faults:
    """What is wrong with the rows of a source; of each row the first that is found.

    Args:
        source: the name that messages use.
    """

    def __init__(self, source: str):
        self.source = source
        self.found: dict[int, str] = {}

    def add(self, row: int, text: str) -> None:
        """Notes what is wrong with a row, by its number in the source."""
        self.found.setdefault(row, text)

    def settled(self, rows: Dataset) -> Dataset:
        """The rows, if none of them is faulty.

        Raises:
            UserError: the first faulty ones, and how many there are.
        """
        if self.found:
            self._refuse(len(rows))
        return rows

    def _refuse(self, count: int) -> NoReturn:
        # Of rows with the same fault the first.
        first = {text: number for number, text in sorted(self.found.items(), reverse=True)}
        shown = sorted((number, text) for text, number in first.items())[:_SHOWN]
        lines = [f"{where(self.source, number)}: {text}" for number, text in shown]
        if others := len(self.found) - len(lines):
            lines.append(f"{others} more of {count:,} rows are faulty.")
        raise UserError("\n".join(lines))

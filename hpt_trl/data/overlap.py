"""Held-out rows that are trained on as well: what is measured on them says nothing of new rows."""

import logging
from dataclasses import dataclass

from hpt_trl.data.layouts import Splits
from hpt_trl.data.reading.places import where
from hpt_trl.data.sameness import digests, identity

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Overlap:
    """How many of the held-out rows are among the training rows, and the first of them.

    Attributes:
        rows: held-out rows whose prompt (document, problem) is a training row's.
        total: all held-out rows.
        first: number of the first such row in the held-out split, and of the training row that is the same.
    """

    rows: int
    total: int
    first: tuple[int, int] | None = None

    @property
    def share(self) -> float:
        return self.rows / self.total


def find_overlap(splits: Splits) -> Overlap | None:
    """Compare the rows by what makes them the same (see `identity`); only digests of the held-out ones are held.

    Returns:
        None without held-out rows.
    """
    train, test = splits.train, splits.test
    if test is None:
        return None
    columns = identity(train, test, splits.layout, splits.answers)
    held_out: dict[bytes, list[int]] = {}
    for row, digest in digests(test, columns):
        held_out.setdefault(digest, []).append(row)
    found: dict[bytes, int] = {}
    for row, digest in digests(train, columns):
        if digest in held_out:
            found.setdefault(digest, row)
    count = sum(len(held_out[digest]) for digest in found)
    if not found:
        return Overlap(0, len(test))
    # In the order of the held-out rows.
    digest = next(digest for digest in held_out if digest in found)
    first = held_out[digest][0], found[digest]
    same = f"first {where(splits.test_source, first[0])}, which is {where(splits.source, first[1])}"
    logger.warning(
        "%s: %s of %s held-out rows (%.1f %%) are among the training rows by their %s (%s); what is measured on them "
        "is no measure of new rows. Drop them from one of the two, name another split, or write `test_split_size`.",
        splits.test_source,
        f"{count:,}",
        f"{len(test):,}",
        100 * count / len(test),
        columns[0],
        same,
    )
    return Overlap(count, len(test), first)

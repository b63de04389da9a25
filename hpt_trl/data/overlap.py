"""Held-out rows that are trained on as well: what is measured on them says nothing of new rows."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Image, Sequence

from hpt_trl.data.layouts import Splits
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.data.sources import where

logger = logging.getLogger(__name__)

_PICTURES = ("image", "images")


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
    """Compare the rows' contents (prompt with its pictures, document, or problem), apart from white space.

    Only digests of the held-out rows are held. Where all training rows have one prompt, it is the answers that differ,
    and these are compared with it.

    Returns:
        None without held-out rows.
    """
    train, test = splits.train, splits.test
    if test is None:
        return None
    columns = _columns(splits)
    if len(_several(train, columns)) == 1:
        columns += [name for name in splits.answers if name in train.column_names and name in test.column_names]
    held_out: dict[bytes, list[int]] = {}
    for row, digest in _digests(test, columns):
        held_out.setdefault(digest, []).append(row)
    found: dict[bytes, int] = {}
    for row, digest in _digests(train, columns):
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


def _columns(splits: Splits) -> list[str]:
    """What makes two rows the same; the first one names it."""
    if splits.layout == "documents":
        return ["text"]
    if splits.layout == "solutions":
        return ["instruction"]
    assert splits.test is not None
    shared = set(splits.train.column_names) & set(splits.test.column_names)
    return ["prompt", *(name for name in _PICTURES if name in shared)]


def _several(dataset: Dataset, columns: list[str]) -> set[bytes]:
    """Digests of the first rows, as far as the second kind."""
    found: set[bytes] = set()
    for _, digest in _digests(dataset, columns):
        found.add(digest)
        if len(found) > 1:
            break
    return found


def _digests(dataset: Dataset, columns: list[str]) -> Iterator[tuple[int, bytes]]:
    for name in columns:
        # As they lie on disk: nothing is decoded to be compared.
        if isinstance(dataset.features[name], Image):
            dataset = dataset.cast_column(name, Image(decode=False))
        elif name in _PICTURES:
            dataset = dataset.cast_column(name, Sequence(Image(decode=False)))
    for row, values in iterate_rows(dataset, columns):
        text = json.dumps([_plain(value) for value in values], sort_keys=True, default=repr)
        yield row, hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _plain(value: Any) -> Any:
    """A value for comparing: white space does not count, nor does what a message leaves empty."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, bytes):
        return hashlib.blake2b(value, digest_size=16).hexdigest()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items() if part is not None}
    return [_plain(part) for part in value] if isinstance(value, list) else value

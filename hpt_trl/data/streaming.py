"""Training rows that are read, converted and encoded as they are trained, by the code for rows that are read before.

The first rows are read at once: by them the form of the data is recognised and the recipe checked. Each further piece
is converted behind these, so that it is taken for what they are.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, IterableDataset

from hpt_trl.data.arguments import ERROR, DataArguments
from hpt_trl.data.faults import Faults
from hpt_trl.data.forms.recognising import Wanted
from hpt_trl.data.layouts import Splits
from hpt_trl.data.loading import checked_rows, load_splits, to_conversational
from hpt_trl.data.names import as_dict
from hpt_trl.data.reading.files import table_of
from hpt_trl.data.reading.places import ROW, Source, where
from hpt_trl.data.reading.streams import Stream, Tally, open_source
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.data.sameness import digests, identity
from hpt_trl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Rows by which a recipe is checked, and those that are converted at once after them.
HEAD, PIECE = 1000, 1000
_EXAMPLES = 3


def load_streamed(arguments: DataArguments, **shape: Any) -> Splits:
    """The first rows of a recipe's data, checked as `load_splits` does it, and the stream that they begin.

    Args:
        shape: what `load_splits` takes beside the arguments.

    Raises:
        UserError: as `load_splits` does.
    """
    stream, held_out = open_source(arguments)
    head = stream.table(HEAD)
    splits = load_splits(replace(arguments, test_split_size=None), read=lambda _: (head, held_out), **shape)
    return replace(splits, stream=stream, train=_apart(splits.train, splits, arguments))


def _apart(rows: Dataset, splits: Splits, arguments: DataArguments) -> Dataset:
    """The rows without those that `test_split_size` holds out as well (see `identity`)."""
    test = splits.test
    if test is None or arguments.test_split_size is None:
        return rows
    columns = identity(splits.train, test, splits.layout, splits.answers)
    held_out = {digest for _, digest in digests(test, columns)}
    kept = [place for place, (_, digest) in enumerate(digests(rows, columns)) if digest not in held_out]
    return rows if len(kept) == len(rows) else rows.select(kept)


class StreamedRows:
    """The rows of a stream as a trainer takes them, over and over.

    Args:
        splits: the rows of `load_streamed`, as they are after every check.
        arguments: of the recipe.
        tokenizer: whose chat template the prompts are for; None of documents, which have none.
        encode: of a row with the columns of its layout: what the trainer gets. A `UserError` is what is wrong with it.
    """

    def __init__(
        self,
        splits: Splits,
        arguments: DataArguments,
        tokenizer: "PreTrainedTokenizerBase | None",
        encode: Callable[[dict[str, Any]], dict[str, Any]],
    ):
        assert splits.stream is not None
        self.splits, self.arguments, self.tokenizer, self.encode = splits, arguments, tokenizer, encode
        self.stream: Stream = splits.stream
        good = set(splits.train[ROW])
        head = [row for number, row, _ in islice(self.stream, HEAD) if number in good]
        # By numbers that no row of the data has.
        self._lead = [(place - len(head), row) for place, row in enumerate(head)]
        mapped = as_dict(arguments.column_mapping, "column_mapping").keys()
        self._wanted = Wanted((splits.layout,), splits.demonstration_column, True, splits.form, mapped)

    def as_dataset(self, features: Features | None, *, seed: int, buffer: int) -> IterableDataset:
        """The rows without an end, as `datasets` gives them to a trainer.

        Args:
            features: of what `encode` returns; None to take it as it is.
            buffer: rows among which each is drawn; 0 keeps their order.
        """
        rows = IterableDataset.from_generator(self._passes, features=features)
        return rows.shuffle(seed=seed, buffer_size=buffer) if buffer else rows

    def once(self) -> Iterator[dict[str, Any]]:
        """The rows from the first to the last.

        Raises:
            UserError: a faulty row, unless such are dropped.
        """
        return self._pass(Tally())

    def _passes(self) -> Iterator[dict[str, Any]]:
        tally = self.stream.tally = Tally()
        # Few rows are kept: a buffer takes them many times over, and to read them anew each time would be slow.
        kept: list[dict[str, Any]] = []
        for row in self._pass(tally):
            yield row
            if len(kept) <= HEAD:
                kept.append(row)
        if not kept:
            raise UserError("\n".join([*tally.examples, f"{self.stream.name}: no row is left to train on."]))
        while True:
            yield from kept if len(kept) <= HEAD else self._pass(Tally())

    def _pass(self, tally: Tally) -> Iterator[dict[str, Any]]:
        for records, source in self.stream.pieces(PIECE):
            faults = Faults(source, self.arguments.on_bad_row)
            good = self._converted(records, source, faults)
            for number, _ in records:
                tally.rows += 1
                if number in good:
                    try:
                        encoded = self.encode(good[number])
                    except UserError as error:
                        faults.add(number, str(error))
                    else:
                        yield encoded
                if number in faults.found:
                    self._leave_out(f"{where(source, number)}: {faults.found[number]}", tally)

    def _converted(
        self, records: Sequence[tuple[int, Any]], source: Source, faults: Faults
    ) -> dict[int, dict[str, Any]]:
        """The rows that are not faulty, by their numbers."""
        table, unread = table_of([*self._lead, *records], source)
        for number, text in unread.items():
            faults.add(number, text)
        with _said_before():
            rows, _ = checked_rows(table, faults, self.arguments, self._wanted)
            rows = rows.select([place for place, number in enumerate(rows[ROW]) if number not in faults.found])
            if not len(rows):
                return {}
            if self.tokenizer is not None:
                piece = replace(self.splits, train=rows, test=None)
                rows = to_conversational(piece, self.tokenizer, self.arguments).train
        rows, columns = _apart(rows, self.splits, self.arguments), rows.column_names
        return {
            number: dict(zip(columns, values, strict=True))
            for number, values in iterate_rows(rows, columns)
            if number > 0
        }

    def _leave_out(self, text: str, tally: Tally) -> None:
        if self.arguments.on_bad_row == ERROR:
            raise UserError(text)
        tally.faulty += 1
        if len(tally.examples) < _EXAMPLES:
            tally.examples.append(text)


@contextmanager
def _said_before() -> Iterator[None]:
    """Inside, what a conversion warns of is not told: of the first rows it was."""
    above = logging.getLogger("hpt_trl.data")
    level = above.level
    above.setLevel(logging.ERROR)
    try:
        yield
    finally:
        above.setLevel(level)

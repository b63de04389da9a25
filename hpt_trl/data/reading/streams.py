"""Rows read one by one as they are wanted, from the first on, so that the data need not fit into memory."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Audio, Dataset, Image, IterableDataset, LargeList, List, Pdf, ReadInstruction, Video

from hpt_trl.data.arguments import DataArguments
from hpt_trl.data.names import check_name, files_of, looks_local, names_of, shown_names
from hpt_trl.data.reading.files import rows_of, table_of
from hpt_trl.data.reading.folders import files_of_splits, open_folder
from hpt_trl.data.reading.hub import read_hub
from hpt_trl.data.reading.places import Piece, Source
from hpt_trl.data.reading.soundness import Fault
from hpt_trl.data.reading.text import UNREADABLE
from hpt_trl.errors import UserError

# A row's number, the row or what is wrong with it, and the source that knows its place.
Record = tuple[int, Any, Source]
Opened = Callable[[], Iterator[Record]]


@dataclass
class Tally:
    """What became of the rows in the first pass over a stream.

    Attributes:
        rows: that were read, faulty ones included.
        faulty: that were left out.
        examples: of what is wrong with those, with their places.
    """

    rows: int = 0
    faulty: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class Stream:
    """Rows of a split, read anew from the first on each time.

    Attributes:
        name: as messages have it.
        opened: begins to read.
        start: rows that are left out at the beginning.
        stop: where the rows end, counted from the beginning of the split; None for its end.
        tally: of the training that was begun last.
    """

    name: str
    opened: Opened
    start: int = 0
    stop: int | None = None
    tally: Tally = field(default_factory=Tally)

    def __iter__(self) -> Iterator[Record]:
        place = 0
        for number, row, source in self.opened():
            if place >= self.start:
                if self.stop is not None and place >= self.stop:
                    return
                yield number, row, source
            place += not isinstance(row, Fault)

    def pieces(self, size: int) -> Iterator[tuple[list[tuple[int, Any]], Source]]:
        """The rows with their numbers, some at a time, and the source that knows their places."""
        records = iter(self)
        while some := list(islice(records, size)):
            yield [(number, row) for number, row, _ in some], some[-1][2].called(self.name)

    def table(self, most: int | None = None) -> tuple[Dataset, Source]:
        """The rows, or as many of the first, as a table."""
        some = list(islice(iter(self), most))
        source = some[-1][2].called(self.name) if some else Source(self.name)
        rows, faults = table_of([(number, row) for number, row, _ in some], source)
        return rows, Source(source, source.pieces, faults)


def open_source(arguments: DataArguments) -> tuple[Stream, tuple[Dataset, Source] | None]:
    """The training rows of a recipe as a stream, and its held-out rows, which are read.

    With `test_split_size` these are the first rows.

    Raises:
        UserError: no such data or split, a slice that a stream does not have, or held-out rows that are trained on.
    """
    splits, named = _open_splits(arguments)
    name, train, test = shown_names(arguments.dataset_name), arguments.dataset_train_split, arguments.dataset_test_split
    split, start, stop = _bounds(splits, name, train, "dataset_train_split")
    shown = name if train == "train" and not named else f"{name} ({train})"
    training = Stream(shown, splits[split], start, stop)
    if arguments.test_split_size is not None:
        count = int(arguments.test_split_size)
        last = min(start + count, start + count if stop is None else stop)
        rows, source = replace(training, name=f"{shown} (held out)", stop=last).table()
        # Lines that are no JSON count for no slice.
        counted = len(rows) + sum(not isinstance(fault, Fault) for fault in source.faults.values())
        if counted < count:
            raise UserError(f"test_split_size: {count}, but {shown} has {counted:,} rows.")
        return replace(training, start=start + count), (rows, source)
    if test is None and ("test" not in splits or split == "test"):
        return training, None
    test = "test" if test is None else test
    other, first, end = _bounds(splits, name, test, "dataset_test_split")
    if other == split and max(start, first) < min(stop or float("inf"), end or float("inf")):
        raise UserError(
            f"dataset_test_split: `{test}` of {name} shares rows with `{train}`, which is trained on "
            f"(`dataset_train_split`). Write e.g. dataset_train_split: {split}[1000:] and dataset_test_split: "
            f"{split}[:1000]."
        )
    return training, Stream(f"{name} ({test})", splits[other], first, end).table()


def _bounds(splits: Mapping[str, Opened], source: str, name: str, key: str) -> tuple[str, int, int | None]:
    """Split, first row and end of a slice."""
    if name in splits:
        return name, 0, None
    try:
        parts = ReadInstruction.from_spec(name)._relative_instructions
    except (ValueError, TypeError):
        parts = []
    for part in parts:
        if part.splitname not in splits:
            raise UserError(f"{key}: {source} has no split `{part.splitname}`; it has {', '.join(splits)}.")
    if len(parts) == 1 and parts[0].unit != "%":
        first, end = parts[0].from_ or 0, parts[0].to
        if first >= 0 and (end is None or end > first):
            return parts[0].splitname, first, end
    some = next(iter(splits))
    raise UserError(
        f"{key}: `{name}` of {source} cannot be streamed, as how many rows there are is not known before they are "
        f"read; write a split ({', '.join(splits)}) or one slice by counts from its beginning, e.g. {some}[1000:] and "
        f"{some}[:1000]."
    )


def _open_splits(arguments: DataArguments) -> tuple[dict[str, Opened], bool]:
    """What begins to read each split of a source, and whether it gives them names itself."""
    names, config = names_of(arguments.dataset_name), arguments.dataset_config
    check_name(names, options=arguments.dataset_options, config=config, streaming=True)
    name, folder = names[0], Path(names[0]).expanduser()
    if folder.is_dir():
        if files := files_of_splits(folder, config):
            return {split: partial(_of_files, paths, name) for split, paths in files.items()}, set(files) != {"train"}
        loaded = open_folder(folder, config)
    elif looks_local(name):
        return {"train": partial(_of_files, files_of(names), shown_names(names))}, False
    else:
        loaded = read_hub(name, config, streaming=True)
    return {str(split): partial(_of_rows, rows, name) for split, rows in loaded.items()}, True


def _of_rows(rows: IterableDataset, name: str) -> Iterator[Record]:
    source = Source(name)
    if rows.features is not None:
        rows = rows.cast(_undecoded(rows.features))
    return ((number, row, source) for number, row in enumerate(rows, 1))


def _undecoded(feature: Any) -> Any:
    """The feature by which media stay as they are stored; objects in JSON are decoded."""
    if isinstance(feature, dict):
        return type(feature)({name: _undecoded(inner) for name, inner in feature.items()})
    if isinstance(feature, List):
        return List(_undecoded(feature.feature), length=feature.length)
    if isinstance(feature, LargeList):
        return LargeList(_undecoded(feature.feature))
    return replace(feature, decode=False) if isinstance(feature, Audio | Image | Pdf | Video) else feature


def _of_files(paths: list[Path], name: str) -> Iterator[Record]:
    pieces: list[Piece] = []
    last = 0
    for path in paths:
        shown = name if len(paths) == 1 else str(path)
        try:
            rows, by_line = rows_of(path)
            pieces.append(Piece(shown, path, by_line, last))
            source, before = Source(name, pieces), last
            for number, row in rows:
                last = before + number
                yield last, row, source
        except (*UNREADABLE, pa.ArrowInvalid) as error:
            raise UserError(f"dataset_name: {shown} cannot be read: {error}") from error

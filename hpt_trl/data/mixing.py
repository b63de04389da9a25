"""Rows of several data sets joined: how many of each are taken, and all prompts texts or all messages."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

from datasets import Dataset

from hpt_trl.data.alike import alike
from hpt_trl.data.arguments import DataArguments
from hpt_trl.data.entries import OF_ENTRY, check_entries, in_words_of_entry, of_entry, read_entries
from hpt_trl.data.layout_names import Layout, layout_rule
from hpt_trl.data.names import shown_names
from hpt_trl.data.reading.joining import joined
from hpt_trl.data.reading.places import ROW, Piece, Source

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """A data set of a recipe, which has one or several.

    Attributes:
        arguments: the recipe's, as if it had this one alone.
        name: what it is called among the others.
        columns: those that are read; None for all.
        fraction: its share of the mixture; None for all its rows.
        number: of the entry; 0 where the recipe has one data set.
    """

    arguments: DataArguments
    name: str
    columns: list[str] | None = None
    fraction: float | None = None
    number: int = 0

    def read(self, reader: Callable[[DataArguments], T]) -> T:
        """What a reader makes of the arguments; what it complains of is said in the words of the entry.

        Raises:
            UserError: as the reader does.
        """
        with in_words_of_entry(self.number) if self.number else nullcontext():
            return reader(self.arguments)

    def is_of_the_data_of(self, other: "Part") -> bool:
        """Whether both read the same data, of which they may take other splits and rows."""
        mine, theirs = self.arguments, other.arguments
        return all(
            getattr(mine, key) == getattr(theirs, key) for key in ("dataset_name", "dataset_config", "dataset_options")
        )

    def chosen(self, rows: Dataset) -> Dataset:
        """The rows with the columns that are read.

        Raises:
            UserError: the data lacks one of them.
        """
        if self.columns is None:
            return rows
        if absent := [name for name in self.columns if name not in rows.column_names]:
            there = ", ".join(name for name in rows.column_names if name != ROW)
            said = f"`columns`: there is no `{absent[0]:.60}`; it has {there:.400}."
            raise of_entry(self.number, said, "columns")
        return rows.select_columns([*dict.fromkeys(self.columns), ROW])


def parts_of(arguments: DataArguments, layouts: Sequence[Layout], *, measured: bool = False) -> list[Part]:
    """The data sets of a recipe: its one, or the entries of its mixture.

    Args:
        layouts: those that are read.
        measured: `split` of an entry is what an evaluation measures, else what is trained on.

    Raises:
        UserError: an entry that cannot be read, or keys beside the mixture that do not go with it.
    """
    if arguments.datasets is None:
        return [Part(arguments, shown_names(arguments.dataset_name))]
    given = {key: getattr(arguments, key) for key in (*OF_ENTRY, "test_split_size")}
    if given["dataset_train_split"] == "train":
        # The default cannot be told from what is written.
        del given["dataset_train_split"]
    check_entries(arguments.datasets, given, rule=layout_rule(layouts))
    return [
        Part(
            replace(
                arguments,
                datasets=None,
                dataset_name=entry.path,
                dataset_config=entry.name,
                dataset_options=entry.options,
                dataset_train_split=entry.split or "train",
                dataset_test_split=(entry.test_split or entry.split) if measured else entry.test_split,
                test_split_size=None,
                column_mapping=entry.column_mapping,
                dataset_layout=entry.dataset_layout,
            ),
            shown_names(entry.path),
            entry.columns,
            entry.fraction,
            number,
        )
        for number, entry in enumerate(read_entries(arguments.datasets), 1)
    ]


def taken(parts: Sequence[Part], read: Sequence[tuple[Dataset, Source]]) -> list[tuple[Dataset, Source]]:
    """The first rows of each data set by its share, as `trl.get_dataset` takes them: as many as can be, none twice.

    Raises:
        UserError: a share that takes no row.
    """
    shares = [part.fraction for part in parts if part.fraction is not None]
    if not shares:
        return list(read)
    weights = [share / sum(shares) for share in shares]
    total = min(len(rows) / weight for (rows, _), weight in zip(read, weights, strict=True))
    counts = [round(weight * total) for weight in weights]
    for part, count in zip(parts, counts, strict=True):
        if not count:
            said = f"`fraction: {part.fraction:g}` takes no row of {part.name}: the whole mixture has {sum(counts):,}."
            raise of_entry(part.number, f"{said} Write a larger one.", "fraction")
    return [(rows.select(range(count)), source) for (rows, source), count in zip(read, counts, strict=True)]


def refuse_shared(
    parts: Sequence[Part],
    training: Sequence[tuple[Dataset, Source]],
    held_out: Sequence[tuple[Part, tuple[Dataset, Source]]],
) -> None:
    """Refuse rows that one entry holds out and another trains on.

    Raises:
        UserError: there are some.
    """
    for other, (tests, test_source) in held_out:
        for part, (rows, source) in zip(parts, training, strict=True):
            if part.number == other.number or not part.is_of_the_data_of(other):
                continue
            trained = {test_source.origin(number): number for number in tests[ROW]}
            shared = [number for number in rows[ROW] if source.origin(number) in trained]
            if shared:
                said = (
                    f"{len(shared):,} of its held-out rows are trained on by entry {part.number} (first "
                    f"{source.place(shared[0])}). Write slices that do not overlap, e.g. split: train[:90%] and "
                    "test_split: train[90%:]."
                )
                raise of_entry(other.number, said, "test_split")


def mixed(
    names: Sequence[str], rows: Sequence[Dataset], sources: Sequence[Source], answers: Sequence[str]
) -> tuple[Dataset, Source]:
    """The rows of all, numbered through, and their name, by which each row is named with its own data set.

    Args:
        names: of the data sets.
        answers: columns of what follows a prompt.

    Raises:
        UserError: a column of values that have no type in common, or `margin` in some comparisons alone.
    """
    if len(rows) == 1:
        return rows[0], sources[0]
    if "chosen" in answers:
        _check_margins(rows, names)
    last, numbered = 0, []
    pieces: list[Piece] = []
    for name, one, source in zip(_told_apart(names), rows, sources, strict=True):
        numbers = [number + last for number in one[ROW]]
        pieces += [replace(piece, before=piece.before + last, entry=name) for piece in source.pieces]
        numbered.append(one.remove_columns(ROW).add_column(ROW, numbers))
        # Pieces of which no row is taken stand before the next as well.
        last = max([*numbers, *(piece.before for piece in pieces)], default=last)
    return joined(alike(numbered, answers), list(names)), Source(shown_names(names), pieces)


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names; of data sets that share one, such as two configurations of a Hub id, each with its entry's number."""
    return [f"{name} (entry {number})" if list(names).count(name) > 1 else name for number, name in enumerate(names, 1)]


def _check_margins(rows: Sequence[Dataset], names: Sequence[str]) -> None:
    """Every comparison has a margin, or none: collators make one tensor of them."""
    having = ["margin" in one.column_names for one in rows]
    if any(having) and not all(having):
        odd, even = having.index(False), having.index(True)
        said = f"{names[odd]} has no column `margin`, as entry {even + 1} has; "
        raise of_entry(odd + 1, f"{said}give every comparison one, or leave it out by `columns`.")

"""What a form is, and the one loop that makes the trainer's columns of its rows."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset

from hpt_trl.data.faults import Faults
from hpt_trl.data.layout_names import Layout
from hpt_trl.data.objects import with_column
from hpt_trl.data.reading.soundness import decoded_fault
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.data.usual_names import Names

# Part of a row -> its value, resp. the column that holds it.
Parts = dict[str, Any]
Columns = dict[str, str]


@dataclass(frozen=True)
class Form:
    """How a file has its rows.

    Attributes:
        name: the value of `dataset_layout`; of a form whose columns are the trainer's own, the layout's.
        layout: what the rows become.
        said: what `check` calls them.
        parts: part -> the columns by which it goes, of which the first that is there is taken.
        convert: of the parts of a row and their columns: the trainer's columns, the demonstration as `completion`; a
            text is what is wrong with the row. None where the columns are the trainer's already.
        optional: as `parts`, of what a row may lack.
        looks: of the parts of the first row that has them: whether they are of this form.
        kept: parts whose columns stay beside those that are made of them.
        replaced: the trainer's own columns that are made anew whatever the file has there; a form is not recognised
            where it would lose another.
    """

    name: str
    layout: Layout
    said: str
    parts: Mapping[str, Names]
    convert: Callable[[Parts, Columns], Parts | str] | None = None
    optional: Mapping[str, Names] = field(default_factory=dict)
    looks: Callable[[Parts], bool] = lambda parts: True
    kept: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()

    def columns_of(self, names: Sequence[str]) -> Columns:
        """The column of each part that a file with these columns has."""
        every = {**self.parts, **self.optional}
        found = {part: next((name for name in usual if name in names), None) for part, usual in every.items()}
        return {part: name for part, name in found.items() if name is not None}

    def lacks(self, names: Sequence[str]) -> list[str]:
        """The parts that a file with these columns does not have."""
        there = self.columns_of(names)
        return [part for part in self.parts if part not in there]

    def wanted(self, parts: Sequence[str] | None = None) -> str:
        """Its columns, or those of some of its parts, for a message."""
        shown = self.parts if parts is None else parts
        return ", ".join(" or ".join(f"`{name}`" for name in self.parts[part]) for part in shown)


@dataclass(frozen=True)
class Found:
    """A form, and where a file has its parts.

    Of the columns that it reads those of the parts in `form.kept` stay with the rows, as rewards read them; the others
    are `gone` once the trainer's columns are made. `used` are all that nobody has to be told of as unread.

    Attributes:
        put: further columns whose texts were put into the prompts.
    """

    form: Form
    columns: Columns
    put: frozenset[str] = frozenset()

    @property
    def asked(self) -> bool:
        """Whether the prompt is a column of its own, so that an `input` beside it belongs to it."""
        return self.form.convert is None or "question" in self.columns

    @property
    def used(self) -> set[str]:
        """The columns that others are made of."""
        return self._parts | self.put

    @property
    def gone(self) -> set[str]:
        """Those of its parts that are of no further use."""
        return self._parts - {self.columns[part] for part in self.form.kept if part in self.columns}

    @property
    def _parts(self) -> set[str]:
        if self.form.convert is None:
            return set()
        return {name for part, name in self.columns.items() if part not in self.form.kept}

    def without(self, names: Collection[str]) -> "Found":
        """With the context left where it is, which a template that names its column puts into the prompt."""
        columns = {part: name for part, name in self.columns.items() if part != "context" or name not in names}
        return replace(self, columns=columns)


def converted(
    rows: Dataset, found: Found, faults: Faults, demonstration_column: str, staying: Collection[str] = ()
) -> Dataset:
    """The rows with the columns that the trainer reads; what they are made of is gone, all others stay.

    Of a row that cannot be converted the new columns are None, and `faults` knows why.

    Args:
        staying: columns that stay though others are made of them.

    Raises:
        UserError: no row can be converted.
    """
    convert, columns = found.form.convert, found.columns
    if convert is None:
        return rows
    names = list(dict.fromkeys(columns.values()))
    called = {part: faults.called(name) for part, name in columns.items()}
    made: list[Parts] = []
    for row, values in iterate_rows(rows, names):
        held = dict(zip(names, values, strict=True))
        result = convert({part: held[name] for part, name in columns.items()}, called)
        if not isinstance(result, str):
            # What was text in the file may have become objects.
            checked = (decoded_fault(called.get("conversation", target), value) for target, value in result.items())
            result = next((fault for fault in checked if fault), result)
        if isinstance(result, str):
            faults.add(row, result)
            result = {}
        made.append(result)
    targets = list(dict.fromkeys(target for one in made for target in one))
    if not targets:
        faults.settled(rows)
    named = {target: demonstration_column if target == "completion" else target for target in targets}
    dropped = (found.gone - set(staying)) | set(named.values())
    rows = rows.remove_columns([name for name in rows.column_names if name in dropped])
    for target, name in named.items():
        rows = with_column(rows, name, [one.get(target) for one in made])
    return rows

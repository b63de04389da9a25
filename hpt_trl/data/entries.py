"""Mixtures: the entries of the key `datasets`, each with its own data, columns and share.

The module imports nothing heavy, so that a wrong entry is told early.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from hpt_trl.data.names import check_name, names_of
from hpt_trl.errors import UserError
from hpt_trl.settings.ranges import Rule, problem
from hpt_trl.settings.values import NotAllowed, convert, did_you_mean

# Keys of the recipe that each entry has for itself -> what they are called there.
OF_ENTRY = {
    "dataset_name": "path",
    "dataset_config": "name",
    "dataset_options": "options",
    "dataset_train_split": "split",
    "dataset_test_split": "test_split",
    "column_mapping": "column_mapping",
    "dataset_layout": "dataset_layout",
}
# Bounds of a share: weights of all that are within them are numbers to reckon with.
SHARES = Rule(("fraction",), "a number above 0, from 1e-06 to 1,000,000", least=1e-6, most=1_000_000)
# Fields of TRL's entries that name files for a builder.
_BUILDERS = ("data_dir", "data_files")


@dataclass(frozen=True)
class Entry:
    """A data set of a mixture, with the fields of `trl.scripts.utils.DatasetConfig` but a builder's files.

    Attributes:
        path: as `dataset_name`. name: as `dataset_config`. options: as `dataset_options`.
        split: its training rows, or in an evaluation those that are measured.
        test_split: its held-out rows; by default `test`, where the data has one.
        columns: those that are read, by their names in the file; all by default.
        fraction: its share of the mixture, which is as large as it can be without a row taken twice; the first rows.
        column_mapping, dataset_layout: as the recipe's keys.
    """

    path: str | list
    name: str | None = None
    split: str | None = None
    test_split: str | None = None
    columns: list[str] | None = None
    fraction: float | None = None
    column_mapping: dict | None = None
    dataset_layout: str | None = None
    options: dict | None = None


def read_entries(value: Sequence[Any]) -> list[Entry]:
    """The entries of the key `datasets`.

    Raises:
        UserError: a field that there is not or that has another type, or shares that are of some alone.
    """
    entries = [_entry(item, number) for number, item in enumerate(value, 1)]
    if not entries:
        raise UserError("datasets: an empty list; write `datasets: [{path: ...}, {path: ...}]`, or `dataset_name`.")
    shares = [entry.fraction for entry in entries if entry.fraction is not None]
    if shares and len(shares) < len(entries):
        number = next(place for place, entry in enumerate(entries, 1) if entry.fraction is None)
        raise UserError(
            f"datasets, entry {number}: there is no `fraction`, which others have; write it for all or none."
        )
    return entries


def check_entries(
    value: Sequence[Any], given: Mapping[str, Any], made: Sequence[str] = (), rule: Rule | None = None
) -> None:
    """Refuse entries that can be read by no means, and keys beside them that each entry has for itself.

    Args:
        given: the recipe's keys as far as they are written.
        made: folders that will be there when the recipe runs.
        rule: what `dataset_layout` may be; None where the stage is not known.

    Raises:
        UserError: the first of these.
    """
    if beside := [key for key in OF_ENTRY if given.get(key) is not None]:
        raise UserError(
            f"datasets: `{beside[0]}` stands beside it; in a mixture write `{OF_ENTRY[beside[0]]}` in each entry."
        )
    for number, entry in enumerate(read_entries(value), 1):
        if entry.test_split is not None and given.get("test_split_size") is not None:
            raise UserError(
                f"datasets, entry {number}: `test_split` and `test_split_size` both name held-out rows; drop one."
            )
        if rule is not None and (fault := problem(rule, entry.dataset_layout)):
            raise UserError(f"datasets, entry {number}: `dataset_layout: {entry.dataset_layout!s:.80}` {fault}")
        if not set(made).isdisjoint(names_of(entry.path)):
            continue
        try:
            check_name(entry.path, options=entry.options, config=entry.name)
        except UserError as error:
            raise UserError(f"datasets, entry {number}: {said_of_entry(error)}") from error


def said_of_entry(error: UserError) -> str:
    """A complaint about data in the words of an entry."""
    text = str(error)
    for key, name in OF_ENTRY.items():
        text = text.replace(f"`{key}", f"`{name}")
        text = f"{name}{text.removeprefix(key)}" if text.startswith(f"{key}:") else text
    return text


def named_layout(dataset_layout: str | None, datasets: Any) -> str | None:
    """What a recipe says that its rows are, in a mixture the first entry that says something."""
    entries = [item.get("dataset_layout") for item in datasets or [] if isinstance(item, dict)]
    return next((value for value in [dataset_layout, *entries] if value is not None), None)


def every_name(dataset_name: Any, datasets: Any) -> list[str]:
    """All names of data in a recipe, those of the entries of a mixture included."""
    entries = [item.get("path") for item in datasets or [] if isinstance(item, dict)]
    # Of another type they are told of where the entries are read.
    names = [value for value in [dataset_name, *entries] if isinstance(value, str | list)]
    return [name for value in names for name in names_of(value)]


def _entry(item: Any, number: int) -> Entry:
    at = f"datasets, entry {number}"
    if not isinstance(item, dict):
        raise UserError(
            f"{at}: {item!r:.80} is no mapping; write {{path: ...}}, e.g. {{path: rows.jsonl, fraction: 0.5}}."
        )
    hints, known = get_type_hints(Entry), [field.name for field in fields(Entry)]
    taken: dict[str, Any] = {}
    for key, value in item.items():
        if key in _BUILDERS:
            raise UserError(f"{at}: `{key}`: write the file, pattern or folder as `path`.")
        if key not in known:
            called = OF_ENTRY.get(key)
            hint = f" Write `{called}`." if called else did_you_mean(str(key), known)
            raise UserError(f"{at}: there is no field `{key!s:.60}`; it takes {', '.join(known)}.{hint}")
        try:
            taken[key] = convert(hints[key], value, str(value))
        except NotAllowed as error:
            raise UserError(f"{at}: `{key}: {value!r:.80}`; allowed: {error}.") from error
    if not taken.get("path"):
        raise UserError(f"{at}: there is no `path`; write a file, a folder, a Hub id or a generated data set.")
    fraction = taken.get("fraction")
    if fraction is not None and not SHARES.holds(fraction):
        raise UserError(f"{at}: `fraction: {fraction:g}`; allowed: {SHARES.allowed}, or leave the entry out.")
    return Entry(**taken)

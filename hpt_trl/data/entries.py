"""Mixtures: the entries of the key `datasets`, each with its own data, columns and share.

The module imports nothing heavy, so that a wrong entry is told early.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_type_hints

from hpt_trl.data.names import check_name, names_of
from hpt_trl.errors import Collector, UserError
from hpt_trl.settings.ranges import Rule, problem
from hpt_trl.settings.values import NotAllowed, convert, did_you_mean

# The recipe's key.
KEY = "datasets"
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
# Fields of others' mixtures (alignment-handbook, axolotl, LLaMA-Factory) -> what they are called here.
_USUAL = {
    **dict.fromkeys(("weight", "weights", "ratio", "share", "probability", "proportion"), "fraction"),
    **dict.fromkeys(("id", "dataset", "file"), "path"),
    **dict.fromkeys(("type", "layout", "format", "formatting"), "dataset_layout"),
    **dict.fromkeys(("config", "subset"), "name"),
}
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


_FIELDS = get_type_hints(Entry)


def read_entries(value: Sequence[Any]) -> list[Entry]:
    """The entries of the key `datasets`.

    Raises:
        UserError: fields that there are not or that have another type, or shares that are of some alone.
    """
    mistakes = Collector()
    entries = _entries(value, mistakes)
    mistakes.settle()
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
        UserError: all of these.
    """
    mistakes = Collector()
    for key, name in OF_ENTRY.items():
        if given.get(key) is not None:
            said = f"`{key}` stands beside it; in a mixture write `{name}` in each entry."
            mistakes.note(UserError(said, about=(KEY,)))
    for number, entry in enumerate(_entries(value, mistakes), 1):
        if entry.test_split is not None and given.get("test_split_size") is not None:
            said = "`test_split` and `test_split_size` both name held-out rows; drop one."
            mistakes.note(of_entry(number, said, "test_split"))
        if rule is not None and (fault := problem(rule, entry.dataset_layout)):
            said = f"`dataset_layout: {entry.dataset_layout!s:.80}` {fault}"
            mistakes.note(of_entry(number, said, "dataset_layout"))
        if not entry.path or not set(made).isdisjoint(names_of(entry.path)):
            continue
        with mistakes.noted(), in_words_of_entry(number):
            check_name(entry.path, options=entry.options, config=entry.name)
    mistakes.settle()


def of_entry(number: int, said: str, *field: str) -> UserError:
    """Returns (does not raise) the error about an entry, or about one of its fields."""
    return UserError(f"entry {number}: {said}", about=(KEY, str(number), *field))


@contextmanager
def in_words_of_entry(number: int) -> Iterator[None]:
    """Inside, a complaint about data is said in the words of an entry.

    Raises:
        UserError: the complaint.
    """
    try:
        yield
    except UserError as error:
        text = str(error)
        about: tuple[str, ...] = ()
        for key, name in OF_ENTRY.items():
            text = text.replace(f"`{key}", f"`{name}")
            if text.startswith(f"{key}:"):
                text, about = f"{name}{text.removeprefix(key)}", (name,)
        raise of_entry(number, text, *about) from error


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


def _entries(value: Sequence[Any], mistakes: Collector) -> list[Entry]:
    """The entries; of those with mistakes, what is right of them."""
    if not value:
        said = "an empty list; write `datasets: [{path: ...}, {path: ...}]`, or `dataset_name`."
        mistakes.note(UserError(said, about=(KEY,)))
    shared = [item.get("fraction") is not None if isinstance(item, dict) else None for item in value]
    for number, has_share in enumerate(shared, 1):
        if any(shared) and has_share is False:
            mistakes.note(of_entry(number, "there is no `fraction`, which others have; write it for all or none."))
    return [_entry(item, number, mistakes) for number, item in enumerate(value, 1)]


def _entry(item: Any, number: int, mistakes: Collector) -> Entry:
    if not isinstance(item, dict):
        said = f"{item!r:.80} is no mapping; write {{path: ...}}, e.g. {{path: rows.jsonl, fraction: 0.5}}."
        mistakes.note(of_entry(number, said))
        return Entry("")
    taken: dict[str, Any] = {}
    for key, value in item.items():
        try:
            taken[key] = _field(key, value)
        except NotAllowed as error:
            mistakes.note(of_entry(number, str(error), str(key)))
    if not item.get("path") and not any(did_you_mean(str(key), ("path",)) for key in item if key not in _FIELDS):
        said = "there is no `path`; write a file, a folder, a Hub id or a generated data set."
        mistakes.note(of_entry(number, said))
    return Entry(**{"path": "", **taken})


def _field(key: str, value: Any) -> Any:
    """The value of a field.

    Raises:
        NotAllowed: what is to be said of it.
    """
    if key in _BUILDERS:
        raise NotAllowed(f"`{key}`: write the file, pattern or folder as `path`.")
    if key not in _FIELDS:
        called = OF_ENTRY.get(key) or _USUAL.get(key)
        hint = f" Write `{called}`." if called else did_you_mean(str(key), _FIELDS)
        raise NotAllowed(f"there is no field `{key!s:.60}`; it takes {', '.join(_FIELDS)}.{hint}")
    try:
        taken = convert(_FIELDS[key], value, str(value))
    except NotAllowed as error:
        raise NotAllowed(f"`{key}: {value!r:.80}`; allowed: {error}.") from error
    if key == "fraction" and taken is not None and not SHARES.holds(taken):
        raise NotAllowed(f"`fraction: {taken:g}`; allowed: {SHARES.allowed}, or leave the entry out.")
    return taken

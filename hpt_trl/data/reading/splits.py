"""The splits of a source by name, and slices of them as `datasets` writes them: `train[:25%]`, `train[100:]+extra`."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from datasets import Dataset, ReadInstruction, concatenate_datasets

from hpt_trl.data.names import kind_of
from hpt_trl.data.reading.places import ROW, Rows, Source
from hpt_trl.errors import UserError


@dataclass(frozen=True)
class _Part:
    """Rows `start` to `stop` (without it) of one split."""

    split: str
    start: int
    stop: int


def pick_splits(
    splits: Mapping[str, Rows], source: str, train: str, test: str | None, *, named: bool
) -> tuple[tuple[Dataset, Source], tuple[Dataset, Source] | None]:
    """Return training and held-out rows by the names of their splits, each with the name that messages use.

    Args:
        source: the dataset as the recipe names it.
        train: `dataset_train_split`.
        test: `dataset_test_split`; None for the split `test` where the source has one that is not trained on.
        named: the source itself gives its splits names; else a plain `train` goes without one in messages.

    Raises:
        UserError: no such split, a slice that cannot be read or is empty, or held-out rows that are also trained on.
    """
    parts = _parts(splits, source, train, "dataset_train_split")
    shown = source if train == "train" and not named else f"{source} ({train})"
    training = _picked(splits, parts, source, shown)
    if test is None:
        if "test" not in splits or any(part.split == "test" for part in parts):
            return training, None
        test = "test"
    others = _parts(splits, source, test, "dataset_test_split")
    if shared := _shared(parts, others):
        raise UserError(
            f"dataset_test_split: `{test}` of {source} shares {shared:,} rows with `{train}`, which is trained on "
            "(`dataset_train_split`). Write slices that do not overlap, e.g. dataset_train_split: "
            f"{parts[0].split}[:90%] and dataset_test_split: {parts[0].split}[90%:], or `test_split_size`."
        )
    return training, _picked(splits, others, source, f"{source} ({test})")


def pick_measured(splits: Mapping[str, Rows], source: str, test: str | None, *, named: bool) -> tuple[Dataset, Source]:
    """Return the rows that an evaluation measures, with the name that messages use.

    Args:
        source: the dataset as the recipe names it.
        test: `dataset_test_split`; None for the split `test`, or the only one.
        named: the source itself gives its splits names.

    Raises:
        UserError: no such split, a slice that cannot be read or is empty, or no way to tell which split is meant.
    """
    if test is None:
        if "test" not in splits and len(splits) > 1:
            raise UserError(
                f"dataset_test_split: {source} has the splits {', '.join(splits)}; name the one that is measured, e.g. "
                f"dataset_test_split: {list(splits)[-1]}."
            )
        test = "test" if "test" in splits else next(iter(splits))
    shown = source if len(splits) == 1 and test in splits and not named else f"{source} ({test})"
    return _picked(splits, _parts(splits, source, test, "dataset_test_split"), source, shown)


def _parts(splits: Mapping[str, Rows], source: str, name: str, key: str) -> list[_Part]:
    if name in splits:
        return [_Part(name, 0, len(splits[name].dataset))]
    try:
        instruction = ReadInstruction.from_spec(name)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{key}: `{name}` of {source} cannot be read: write a split ({', '.join(splits)}) or slices of it, e.g. "
            f"{next(iter(splits))}[:25%], {next(iter(splits))}[100:200]."
        ) from error
    for split in dict.fromkeys(part.splitname for part in instruction._relative_instructions):
        if split not in splits:
            near = difflib.get_close_matches(split, list(splits), n=1)
            hint = f"; did you mean `{near[0]}`?" if near else "."
            if kind_of(split) is not None:
                hint += " Name a folder that holds both files, train.jsonl and test.jsonl."
            elif key == "dataset_test_split" and len(splits) == 1:
                hint += f" For held-out rows write a slice, e.g. {next(iter(splits))}[90%:], or `test_split_size`."
            raise UserError(f"{key}: {source} has no split `{split}`; it has {', '.join(splits)}{hint}")
    try:
        absolute = instruction.to_absolute({split: len(rows.dataset) for split, rows in splits.items()})
    except (ValueError, AssertionError) as error:
        raise UserError(f"{key}: `{name}` of {source}: {error}") from error
    parts = [_Part(part.splitname, part.from_, part.to) for part in absolute if part.from_ < part.to]
    if not parts:
        sizes = ", ".join(f"{part.splitname} {len(splits[part.splitname].dataset):,}" for part in absolute[:1])
        raise UserError(f"{key}: `{name}` selects no rows of {source}, which has {sizes} rows.")
    return parts


def _picked(splits: Mapping[str, Rows], parts: list[_Part], source: str, shown: str) -> tuple[Dataset, Source]:
    """The rows of the parts; those of several splits are numbered through."""
    names = dict.fromkeys(part.split for part in parts)
    there: dict[str, Rows] = {}
    last = 0
    for name in names:
        there[name] = splits[name].after(last, f"{source} ({name})")
        last = there[name].last
    chosen: list[Dataset] = []
    faults: dict[int, str] = {}
    for part in parts:
        whole = there[part.split]
        rows = whole.dataset
        if (part.start, part.stop) == (0, len(rows)):
            faults.update(whole.faults)
        else:
            # Those between the rows of the slice.
            first = rows[part.start][ROW] if part.start else 0
            last = rows[part.stop - 1][ROW] if part.stop < len(rows) else whole.last
            faults.update({row: text for row, text in whole.faults.items() if first <= row <= last})
            rows = rows.select(range(part.start, part.stop))
        chosen.append(rows)
    rows = chosen[0] if len(chosen) == 1 else concatenate_datasets(chosen)
    return rows, Source(shown, [piece for name in names for piece in there[name].pieces], faults)


def _shared(parts: list[_Part], others: list[_Part]) -> int:
    return sum(
        max(0, min(part.stop, other.stop) - max(part.start, other.start))
        for part in parts
        for other in others
        if part.split == other.split
    )

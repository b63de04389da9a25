"""From the keys of a recipe to rows: generated ones, local files, saved folders and the Hub."""

from pathlib import Path

from datasets import Dataset

from hpt_trl.data.arguments import DataArguments
from hpt_trl.data.generated import generate, is_generated
from hpt_trl.data.names import as_dict, check_name, files_of, kind_of, looks_local, names_of, shown_names
from hpt_trl.data.objects import warn_of_filled_objects
from hpt_trl.data.reading.files import read_files
from hpt_trl.data.reading.folders import read_folder
from hpt_trl.data.reading.hub import read_hub
from hpt_trl.data.reading.places import Rows, Source, numbered
from hpt_trl.data.reading.splits import pick_measured, pick_splits
from hpt_trl.errors import UserError


def read_source(arguments: DataArguments, *, seed: int) -> tuple[tuple[Dataset, Source], tuple[Dataset, Source] | None]:
    """Read the dataset of a recipe, its columns untouched.

    Returns:
        The training rows and, where the data has them, the held-out rows, each with the name that messages use.

    Raises:
        UserError: no such dataset, file or split, a file that cannot be read, or an option that does not apply.
    """
    if arguments.test_split_size is not None and arguments.dataset_test_split is not None:
        raise UserError(
            f"test_split_size: {arguments.test_split_size:g} rows are to be held out, but `dataset_test_split: "
            f"{arguments.dataset_test_split}` names the held-out rows; drop one of the two."
        )
    splits, named = _read_splits(arguments, seed=seed)
    name, train, test = shown_names(arguments.dataset_name), arguments.dataset_train_split, arguments.dataset_test_split
    training, held_out = pick_splits(splits, name, train, test, named=named)
    for part, shown in [training, *([held_out] if held_out else [])]:
        _warn(arguments, part, shown)
    return training, held_out


def read_measured(arguments: DataArguments, *, seed: int) -> tuple[Dataset, Source]:
    """Read the rows that an evaluation measures, their columns untouched, with the name that messages use.

    They are the split `dataset_test_split`; by default `test` where the data has it, else its only split.

    Raises:
        UserError: as `read_source` does, or the data has several splits and none of them is `test`.
    """
    splits, named = _read_splits(arguments, seed=seed)
    name = shown_names(arguments.dataset_name)
    rows, shown = pick_measured(splits, name, arguments.dataset_test_split, named=named)
    _warn(arguments, rows, shown)
    return rows, shown


def _warn(arguments: DataArguments, rows: Dataset, shown: str) -> None:
    names = names_of(arguments.dataset_name)
    # Of text files the objects are read as they stand there.
    if any(not is_generated(name) and kind_of(name) in (None, ".parquet") for name in names):
        warn_of_filled_objects(rows, shown)


def _read_splits(arguments: DataArguments, *, seed: int) -> tuple[dict[str, Rows], bool]:
    """All splits of a source, and whether it gives them names itself."""
    names, options, config = names_of(arguments.dataset_name), arguments.dataset_options, arguments.dataset_config
    check_name(names, options=options, config=config)
    name = names[0]
    if is_generated(name):
        made = generate(name, as_dict(options, "dataset_options"), seed=seed)
        return {split: numbered(rows, name) for split, rows in made.items()}, False
    if Path(name).expanduser().is_dir():
        return read_folder(Path(name).expanduser(), config)
    if looks_local(name):
        return {"train": read_files(files_of(names), shown_names(names))}, False
    return {split: numbered(rows, name) for split, rows in read_hub(name, config).items()}, True

"""Reading of datasets: generated ones, local files, saved folders and the Hub.

Local JSON is read line by line here rather than by a builder: a broken line must be named, a first look must not read
the whole file, and no string may turn into a date because it looks like one.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from datasets import Dataset, DatasetDict

from hpt_trl.data.arguments import DataArguments
from hpt_trl.data.generated import FILES, NAMES, generate, is_generated
from hpt_trl.data.names import as_dict, check_name, is_saved, looks_local
from hpt_trl.data.objects import arrow_column, warn_of_filled_objects
from hpt_trl.data.splits import pick_measured, pick_splits
from hpt_trl.errors import UserError
from hpt_trl.files import parsed_json
from hpt_trl.settings.values import did_you_mean

# Files whose objects are read as they stand there.
_JSON = tuple(ending for ending in FILES if ending != ".parquet")

# Column with the 1-based row of the source (the line of a .jsonl file), by which messages name a row.
ROW = "row"


def where(source: str, row: int) -> str:
    """Name a row of a source: `data.jsonl, line 3` or `openai/gsm8k (train), row 3`."""
    # Without the split: `data.jsonl (train[:25%])`.
    file = source.rpartition(" (")[0] if source.endswith(")") else source
    unit = "line" if file.removesuffix(".gz").endswith(".jsonl") else "row"
    return f"{source}, {unit} {row}"


def column_values(dataset: Dataset, column: str) -> list[Any]:
    """Return a column as a list, without reading any other."""
    return dataset.select_columns(column)[:][column]


def read_source(arguments: DataArguments, *, seed: int) -> tuple[tuple[Dataset, str], tuple[Dataset, str] | None]:
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
    name, train, test = str(arguments.dataset_name), str(arguments.dataset_train_split), arguments.dataset_test_split
    training, held_out = pick_splits(splits, name, train, test, named=named)
    for part, shown in [training, *([held_out] if held_out else [])]:
        _warn(name, part, shown)
    return training, held_out


def read_measured(arguments: DataArguments, *, seed: int) -> tuple[Dataset, str]:
    """Read the rows that an evaluation measures, their columns untouched, with the name that messages use.

    They are the split `dataset_test_split`; by default `test` where the data has it, else its only split.

    Raises:
        UserError: as `read_source` does, or the data has several splits and none of them is `test`.
    """
    splits, named = _read_splits(arguments, seed=seed)
    name = str(arguments.dataset_name)
    rows, shown = pick_measured(splits, name, arguments.dataset_test_split, named=named)
    _warn(name, rows, shown)
    return rows, shown


def _warn(name: str, rows: Dataset, shown: str) -> None:
    if not is_generated(name) and not name.endswith(_JSON):
        warn_of_filled_objects(rows, shown)


def _read_splits(arguments: DataArguments, *, seed: int) -> tuple[dict[str, Dataset], bool]:
    """All splits of a source, their rows numbered, and whether it gives them names itself."""
    name = str(arguments.dataset_name or "")
    options, generated = arguments.dataset_options, is_generated(name)
    check_name(name, options=options, config=arguments.dataset_config, streaming=arguments.dataset_streaming)
    if generated:
        splits = generate(name, as_dict(options, "dataset_options"), seed=seed)
    elif Path(name).is_dir():
        splits = _read_folder(name, arguments.dataset_config)
    elif looks_local(name):
        splits = {"train": _read_file(name)}
    else:
        splits = _read_hub(name, arguments.dataset_config)
    return {split: _numbered(rows) for split, rows in splits.items()}, isinstance(splits, DatasetDict)


def _numbered(dataset: Dataset) -> Dataset:
    """With the number of each row in its source, which slices keep."""
    if ROW in dataset.column_names:
        return dataset
    return dataset.add_column(ROW, range(1, len(dataset) + 1))


def _read_hub(name: str, config: str | None) -> DatasetDict:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    try:
        return load_dataset(name, config)
    except (OSError, ValueError, DatasetsError, HTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"dataset_name: `{name}` is not a local file or folder, and as a Hub dataset it cannot be loaded: "
            f"{reason}{did_you_mean(name, NAMES)}\n"
            "Check the name (owner/name) and `dataset_config`, or give a local copy: "
            "--dataset_name path/to/file.jsonl (also .jsonl.gz, .json, .parquet, or a folder written by save_to_disk)."
        ) from error


def _read_folder(name: str, config: str | None) -> dict[str, Dataset]:
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    try:
        # Without the marks of save_to_disk the folder may be a copy of a Hub repository.
        loaded = load_from_disk(name) if is_saved(Path(name)) else load_dataset(name, config)
    except (OSError, ValueError, KeyError, DatasetsError, pa.ArrowInvalid) as error:
        raise UserError(
            f"dataset_name: the folder {name} cannot be read: {error}\nWrite a folder that save_to_disk wrote, or a "
            f"file ({', '.join(FILES)})."
        ) from error
    return {"train": loaded} if isinstance(loaded, Dataset) else loaded


def _read_file(name: str) -> Dataset:
    path = Path(name).expanduser()
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        if path.suffix == ".json":
            rows = _json_array(name, path)
            if rows is not None:
                return _from_rows(list(enumerate(rows, 1)), name)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _from_rows(list(_json_lines(name, file)), name)
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        raise UserError(f"dataset_name: {name} cannot be read: {error}") from error


def _read_parquet(path: Path) -> Dataset:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, memory_map=True)
    # Whole row groups decode at once into several times their size; batches do not.
    return Dataset(pa.Table.from_batches(file.iter_batches(batch_size=1000), schema=file.schema_arrow))


def _json_array(name: str, path: Path) -> list[Any] | None:
    """Return the rows of a .json file that holds one list, also as `examples` of one object (VRAG, ViDoSeek).

    None where it holds JSON lines.
    """
    text = path.read_bytes()
    if text.lstrip()[:1] == b"{":
        try:
            value = parsed_json(text)
        except ValueError:
            # More than one object, or a broken line, which its reader names.
            return None
        examples = value.get("examples")
        return examples if isinstance(examples, list) else None
    if text.lstrip()[:1] != b"[":
        return None
    try:
        return parsed_json(text)
    except ValueError as error:
        raise UserError(f"dataset_name: {name} is not valid JSON: {error}") from error


def _json_lines(name: str, file: BinaryIO | gzip.GzipFile) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = parsed_json(line)
        except UnicodeDecodeError as error:
            raise UserError(f"{name}, line {number}: not UTF-8 text ({error.reason} at byte {error.start}).") from error
        except json.JSONDecodeError as error:
            shown = line[:80].decode(errors="replace").rstrip()
            raise UserError(
                f"{name}, line {number}: not valid JSON ({error.msg}, character {error.pos + 1}): {shown}\n"
                "Every line must be one JSON object."
            ) from error
        # Nested too deep, or a whole number of more digits than Python reads.
        except ValueError as error:
            raise UserError(f"{name}, line {number}: {error}.") from error
        yield number, row


def _from_rows(rows: list[tuple[int, Any]], source: str) -> Dataset:
    """Build a dataset from numbered rows; a key that a row lacks is None there.

    Raises:
        UserError: a row that is not an object, or a value whose type does not fit the rows before it.
    """
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError(f'{where(source, number)}: {row!r:.80} is not an object; write {{"prompt": …}}.')
    columns = {}
    for key in dict.fromkeys(key for _, row in rows for key in row):
        values = [row.get(key) for _, row in rows]
        try:
            columns[key] = arrow_column(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            index = _first_misfit(values)
            before = arrow_column(values[:index]).type
            raise UserError(
                f"{where(source, rows[index][0])}: `{key}` is {values[index]!r:.80}, but the rows before it hold "
                f"{before}; write the same type in every row."
            ) from error
    if ROW not in columns:
        columns[ROW] = pa.array([number for number, _ in rows], pa.int64())
    return Dataset(pa.table(columns))


def _first_misfit(values: list[Any]) -> int:
    """Return the index of the value that Arrow cannot add to those before it."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            arrow_column(values[:middle])
            low = middle
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            high = middle
    return low

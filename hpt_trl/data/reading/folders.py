"""Folders: what `save_to_disk` wrote, copies of Hub repositories, and folders of files."""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import DatasetDict
from datasets.data_files import DataFilesList, get_data_patterns

from hpt_trl.data.names import is_saved, kind_of
from hpt_trl.data.reading.files import read_files
from hpt_trl.data.reading.places import Piece, Rows, numbered
from hpt_trl.data.reading.tables import same_columns
from hpt_trl.errors import UserError

logger = logging.getLogger(__name__)

# Files of a repository that are no data.
_BESIDE = (".md", ".py", ".yaml", ".yml", ".lock", "")


def read_folder(folder: Path, config: str | None) -> tuple[dict[str, Rows], bool]:
    """The splits of a folder, and whether it gives them names itself.

    Files of the kinds that are read one by one are read as those are; their splits are what `datasets` takes for them,
    by the names of files and folders (`train-00000-of-00002.parquet`, `test/a.jsonl`; else all are `train`). What
    describes its own parts (in the README of a Hub repository) or holds files of other kinds is left to `datasets`.

    Args:
        config: `dataset_config`.

    Raises:
        UserError: it cannot be read.
    """
    if files := files_of_splits(folder, config):
        return {split: _rows(paths, folder) for split, paths in files.items()}, set(files) != {"train"}
    loaded = open_folder(folder, config, streaming=False)
    named = isinstance(loaded, DatasetDict)
    splits = loaded if isinstance(loaded, DatasetDict) else {"train": loaded}
    return {split: numbered(rows, str(folder)) for split, rows in splits.items()}, named


def files_of_splits(folder: Path, config: str | None) -> dict[str, list[Path]]:
    """The files of each split; none where the folder is for `datasets` to read.

    Args:
        config: `dataset_config`.
    """
    from datasets.exceptions import DatasetsError

    if is_saved(folder) or config is not None:
        return {}
    try:
        patterns = get_data_patterns(str(folder))
    except (OSError, DatasetsError):
        return {}
    found = {str(split): _resolved(names, folder) for split, names in patterns.items()}
    every = [path for paths in found.values() for path in paths]
    odd = [path for path in every if kind_of(path.name) is None]
    # A table beside pictures describes these.
    described = any(path.name.startswith("metadata.") for path in every) or _describes_itself(folder / "README.md")
    if described or any(path.suffix.lower() not in _BESIDE for path in odd):
        return {}
    kept = {split: [path for path in paths if path not in odd] for split, paths in found.items()}
    for path in sorted(set(_resolved(["**"], folder)) - set(every)):
        if kind_of(path.name) is not None:
            logger.warning(
                "%s: %s, which is of no split by its name as others are (%s), is left out.",
                folder,
                path,
                ", ".join(kept),
            )
    return {split: paths for split, paths in kept.items() if paths}


def _resolved(patterns: list[str], folder: Path) -> list[Path]:
    return [Path(path) for path in DataFilesList.from_patterns(patterns, base_path=str(folder))]


def _describes_itself(readme: Path) -> bool:
    from huggingface_hub import DatasetCard

    if not readme.is_file():
        return False
    try:
        metadata = DatasetCard.load(readme).data.to_dict()
    except ValueError:
        return True
    return "configs" in metadata


def _rows(paths: list[Path], folder: Path) -> Rows:
    if not all(kind_of(path.name) == ".parquet" for path in paths) or not (counts := same_columns(paths)):
        return read_files(paths, str(folder))
    # Tables that stay on the disk: `datasets` maps its copy of them into memory.
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=[str(path) for path in paths], split="train")
    pieces, before = [], 0
    for path, count in zip(paths, counts, strict=True):
        pieces.append(Piece(str(path), path, before=before))
        before += count
    return numbered(rows, str(folder), pieces)


def open_folder(folder: Path, config: str | None, *, streaming: bool = True) -> Any:
    """What `datasets` makes of a folder, its splits by name, read or as streams; of one that is saved alone its rows.

    Raises:
        UserError: it cannot be read.
    """
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    try:
        if is_saved(folder):
            return load_from_disk(str(folder))
        return load_dataset(str(folder), config, streaming=streaming)
    except (OSError, ValueError, KeyError, DatasetsError, pa.ArrowInvalid) as error:
        raise UserError(
            f"dataset_name: the folder {folder} cannot be read: {error}\nWrite a folder that save_to_disk wrote, or "
            "one of files that can be read one by one."
        ) from error

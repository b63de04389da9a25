"""What a recipe's `dataset_name` leads to, as far as that shows without reading it.

The module imports nothing heavy: a file that is not there is told before the seconds that `datasets` takes.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpt_trl.data.generated import NAMES, is_generated
from hpt_trl.errors import Collector, UserError
from hpt_trl.files import matching, parsed_json, path_fault

# Endings of the files that rows are read from; those of text may be compressed.
KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")
FILES = (*KINDS, *(f"{kind}.gz" for kind in KINDS[:-1]))
_ALLOWED = f"{', '.join(KINDS)}, or a text file compressed as .gz"


def as_dict(value: dict | str | None, key: str) -> dict[str, Any]:
    """Return a recipe's dictionary, which comes as JSON text from the command line.

    Raises:
        UserError: the text is not a JSON object.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            value = parsed_json(value)
        except ValueError as error:
            said = getattr(error, "msg", error)
            raise UserError(f'{key}: {value!r:.80} is not JSON ({said}); write e.g. \'{{"key": "value"}}\'') from error
    if not isinstance(value, dict):
        raise UserError(f"{key}: {value!r:.80} must be a mapping of names to values.")
    return value


def kind_of(file: str) -> str | None:
    """The ending of a file's name by which it is read, in small letters and without .gz; None for an unknown one."""
    ending = next((ending for ending in FILES if file.lower().endswith(ending)), None)
    return ending and ending.removesuffix(".gz")


def names_of(value: str | Sequence[str] | None) -> list[str]:
    """What a recipe's `dataset_name` names: one name, or several files."""
    return [value] if isinstance(value, str) else list(value or [])


def shown_names(value: str | Sequence[str] | None) -> str:
    """The names on one line, of many the first and how many there are."""
    names = names_of(value)
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"


def files_of(names: Sequence[str]) -> list[Path]:
    """The files that names and patterns (`data/*.jsonl`, `**` for any folders) stand for, those of a pattern sorted."""
    return [
        path
        for name in names
        for path in (sorted(map(Path, _matches(name))) if is_pattern(name) else [Path(name).expanduser()])
    ]


def is_there(name: str) -> bool:
    """Whether a file or folder has the name, or files match it."""
    return bool(_matches(name)) if is_pattern(name) else Path(name).expanduser().exists()


def check_name(
    name: str | Sequence[str] | None,
    *,
    options: dict | str | None = None,
    config: str | None = None,
    streaming: bool = False,
) -> None:
    """Refuse what can be read by no means, and settings that do not go with the name.

    Args:
        name: `dataset_name`, one or several. options: `dataset_options`. config: `dataset_config`.
        streaming: `dataset_streaming`.

    Raises:
        UserError: no name, a file or folder that is not there, or a setting that does not apply.
    """
    names = names_of(name)
    if not names or not all(names):
        raise UserError(
            "dataset_name is missing: write arithmetic, prompts, pages, reasoning_gym:<task>, stories:<part>, "
            f"functions:<part>, a local file ({_ALLOWED}), several of them, a folder of files or one written by "
            "save_to_disk, or a Hub id."
        )
    mistakes = Collector()
    for one in names:
        with mistakes.noted():
            _check_one(one, alone=len(names) == 1)
    mistakes.settle()
    generated = is_generated(names[0])
    if streaming and (generated or is_saved(Path(names[0]).expanduser())):
        why = "is made in memory" if generated else "stays on the disk as it is, and is read from there"
        raise UserError(f"dataset_streaming: {names[0]} {why}; drop the line.")
    if as_dict(options, "dataset_options") and not generated:
        known = ", ".join(NAMES)
        raise UserError(f"dataset_options: only generated datasets ({known}…) have options; drop it.")
    if config is not None and (len(names) > 1 or generated or not _may_be_hub(names[0])):
        raise UserError(
            f"dataset_config: {config} names a part of a Hub dataset, and {shown_names(names)} is none; write "
            "`dataset_config: null`."
        )


def _check_one(name: str, *, alone: bool) -> None:
    if fault := path_fault(name):
        raise UserError(f"dataset_name: {name[:200]} {fault}; name another.")
    if not alone and (is_generated(name) or not looks_local(name) or Path(name).expanduser().is_dir()):
        raise UserError(
            f"dataset_name: `{name}` is no file, and several names are those of files; other data is mixed in by "
            "the key `datasets`."
        )
    if not is_generated(name) and looks_local(name):
        _check_there(name)


def looks_local(name: str) -> bool:
    """Whether a name is that of a file or folder: one that exists, or one that no Hub dataset can have.

    `outputs/x` is what another recipe writes, or was to write.
    """
    return (
        Path(name).exists()
        or kind_of(name) is not None
        or name.endswith("/")
        or is_pattern(name)
        or name.startswith((".", "/", "~", "outputs/"))
        or name.count("/") > 1
    )


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _may_be_hub(name: str) -> bool:
    """Whether a name is a Hub dataset's, or that of a folder which may be the copy of one."""
    folder = Path(name)
    return not is_saved(folder) if folder.is_dir() else not looks_local(name)


def is_pattern(name: str) -> bool:
    """Whether a name stands for the files that match it."""
    # Brackets may also be part of a name.
    return any(mark in name for mark in "*?[") and not Path(name).expanduser().exists()


def _matches(pattern: str) -> list[str]:
    return matching(str(Path(pattern).expanduser()))


def _check_there(name: str) -> None:
    if is_pattern(name):
        found = files_of([name])
        if not found:
            raise UserError(f"dataset_name: no file matches {name} (looked from {Path.cwd()}).")
        for path in found:
            _check_file(path, f"{path}, which {name} matches,")
        return
    path = Path(name).expanduser()
    if not path.exists():
        what = "file or folder" if kind_of(name) is None else "file"
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.*")], n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"dataset_name: there is no {what} {name} (looked in {path.parent.resolve()}).{hint}")
    if not path.is_dir():
        _check_file(path, name)


def _check_file(path: Path, shown: str) -> None:
    if fault := path_fault(path):
        raise UserError(f"dataset_name: {shown} {fault}; name another.")
    if path.is_dir():
        raise UserError(f"dataset_name: {shown} is a folder; write a pattern that files match, e.g. {path}/*.jsonl.")
    if kind_of(path.name) is None:
        raise UserError(f"dataset_name: {shown} is of an unknown kind; write {_ALLOWED}.")

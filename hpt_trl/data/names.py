"""What a recipe's `dataset_name` leads to, as far as that shows without reading it.

The module imports nothing heavy: a file that is not there is told before the seconds that `datasets` takes.
"""

import difflib
from pathlib import Path
from typing import Any

from hpt_trl.data.generated import FILES, NAMES, is_generated
from hpt_trl.errors import UserError
from hpt_trl.files import parsed_json, path_fault


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


def check_name(
    name: str | None, *, options: dict | str | None = None, config: str | None = None, streaming: bool = False
) -> None:
    """Refuse what can be read by no means, and settings that do not go with the name.

    Args:
        name: `dataset_name`. options: `dataset_options`. config: `dataset_config`. streaming: `dataset_streaming`.

    Raises:
        UserError: no name, a file or folder that is not there, or a setting that does not apply.
    """
    if not name:
        raise UserError(
            "dataset_name is missing: write arithmetic, prompts, pages, reasoning_gym:<task>, stories:<part>, "
            "functions:<part>, a local .jsonl, .jsonl.gz, .json or .parquet file, a folder written by save_to_disk, or "
            "a Hub id."
        )
    if streaming:
        raise UserError(
            "dataset_streaming: every row is checked before training, so the data is not streamed; drop it."
        )
    if fault := path_fault(name):
        raise UserError(f"dataset_name: {name[:200]} {fault}; name another.")
    generated, local = is_generated(name), looks_local(name)
    if not generated and local:
        _check_there(name)
    if as_dict(options, "dataset_options") and not generated:
        known = ", ".join(NAMES)
        raise UserError(f"dataset_options: only generated datasets ({known}…) have options; drop it.")
    if config is not None and (generated or not _may_be_hub(name)):
        raise UserError(
            f"dataset_config: {config} names a part of a Hub dataset, and {name} is none; write `dataset_config: null`."
        )


def looks_local(name: str) -> bool:
    """Whether a name is that of a file or folder: one that exists, or one that no Hub dataset can have.

    `outputs/x` is what another recipe writes, or was to write.
    """
    return (
        Path(name).exists()
        or name.endswith((*FILES, "/"))
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


def _check_there(name: str) -> None:
    path = Path(name).expanduser()
    if not path.exists():
        what = "file" if name.endswith(FILES) else "file or folder"
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.*")], n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"dataset_name: there is no {what} {name} (looked in {path.parent.resolve()}).{hint}")
    if not Path(name).is_dir() and not path.name.endswith(FILES):
        raise UserError(f"dataset_name: {name} is of an unknown kind; write one of {', '.join(FILES)}.")

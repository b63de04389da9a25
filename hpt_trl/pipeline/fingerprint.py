"""What a stage's result depends on, so that a finished stage is run again only where something of it changed."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpt_trl.data.names import files_of, is_pattern
from hpt_trl.errors import UserError
from hpt_trl.hub.destination import HUB_KEYS
from hpt_trl.pipeline.plan import PlannedStage
from hpt_trl.pipeline.references import references_of
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.settings.file import read_recipe_file
from hpt_trl.version import __version__

# Larger files count by size and time of change: reading gigabytes of weights would delay every start.
_READ_WHOLE = 64 * 2**20
# What another evaluation is compared by; how it was scored itself says nothing.
_COMPLETIONS = "samples.json*"


def contents_of(stage: PlannedStage, inputs: dict[str, str]) -> dict[str, Any]:
    """Everything that decides a stage's result, by name; values that are equal mean an equal result.

    Args:
        inputs: fingerprint of each stage that this one uses.
    """
    return {
        "hpt_trl": __version__,
        **{f"`{key}`": value for key, value in sorted(stage.values.items()) if key not in HUB_KEYS},
        **{f"stage `{used}`": inputs[used] for used in stage.uses},
        **{f"the files of {path}": digest for path, digest in sorted(_local_data(stage.values).items())},
    }


def fingerprint(contents: dict[str, Any]) -> str:
    """One hash of it all."""
    return hashlib.sha256(json.dumps(contents, sort_keys=True, default=str).encode()).hexdigest()


def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two contents, for reading: `max_steps` 5 -> 6."""
    said = []
    for name in [*new, *(name for name in old if name not in new)]:
        before, after = old.get(name), new.get(name)
        if json.dumps(before, default=str) == json.dumps(after, default=str):
            continue
        if name.startswith("`") or name == "hpt_trl":
            said.append(f"{name}: {_short(before)} -> {_short(after)}")
        else:
            said.append(f"{name} changed")
    return "; ".join(said)


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _local_data(values: dict[str, Any]) -> dict[str, str]:
    """Path -> digest of each file that a recipe names, of folders named as data, model or evaluation, and what the
    evaluations that it names name in turn."""
    found = {}
    for key, value in values.items():
        folders = key in ("dataset_name", "against", "pages") or key.endswith("_name_or_path")
        items = value if isinstance(value, list) else [value]
        if key == "dataset_name":
            items = [part for item in items for part in _matched(item)]
        for item in items:
            if isinstance(item, str) and item and not references_of(item):
                # Any text may stand here, also one that no file system takes for a name.
                with suppress(OSError, RuntimeError):
                    path = Path(item).expanduser()
                    if path.is_file() or (folders and path.is_dir()):
                        found[item] = _digest(path, _COMPLETIONS if key == "against" else "*")
                if key == "evaluations":
                    # Not its model, in whose place the stage's is measured.
                    found |= _local_data(_of_evaluation(item))
    return found


def _matched(item: Any) -> list[Any]:
    """The files that a pattern stands for; anything else as it is."""
    return [str(path) for path in files_of([item])] if isinstance(item, str) and is_pattern(item) else [item]


def _of_evaluation(name: str) -> dict[str, Any]:
    """Keys of an evaluation, without its model; none of one that does not exist, which the check tells."""
    try:
        values = read_recipe_file(find_recipe(name)).values
    except UserError:
        return {}
    return {key: value for key, value in values.items() if key != "model_name_or_path"}


def _digest(path: Path, pattern: str) -> str:
    files = [path] if path.is_file() else sorted(file for file in path.rglob(pattern) if file.is_file())
    total = hashlib.sha256()
    for file in files:
        status = file.stat()
        total.update(f"{file.relative_to(path)}\0{status.st_size}\0".encode())
        if status.st_size <= _READ_WHOLE:
            total.update(file.read_bytes())
        else:
            total.update(str(status.st_mtime_ns).encode())
    return total.hexdigest()

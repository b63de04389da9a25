"""What a stage's result depends on, so that a finished stage is run again only where something of it changed."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpt_trl import __version__
from hpt_trl.pipeline.plan import PlannedStage
from hpt_trl.pipeline.references import references_of

# Larger files count by size and time of change: reading gigabytes of weights would delay every start.
_READ_WHOLE = 64 * 2**20


def contents_of(stage: PlannedStage, inputs: dict[str, str]) -> dict[str, Any]:
    """Everything that decides a stage's result, by name; values that are equal mean an equal result.

    Args:
        inputs: fingerprint of each stage that this one uses.
    """
    return {
        "hpt_trl": __version__,
        **{f"`{key}`": value for key, value in sorted(stage.values.items())},
        **{f"stage `{used}`": inputs[used] for used in stage.uses},
        **{f"the files of {path}": digest for path, digest in sorted(_local_data(stage).items())},
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


def _local_data(stage: PlannedStage) -> dict[str, str]:
    """Path -> digest of each file that the recipe names, and of folders named as data or model."""
    found = {}
    for key, value in stage.values.items():
        folders = key == "dataset_name" or key.endswith("_name_or_path")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and item and not references_of(item):
                # Any text may stand here, also one that no file system takes for a name.
                with suppress(OSError, RuntimeError):
                    path = Path(item).expanduser()
                    if path.is_file() or (folders and path.is_dir()):
                        found[item] = _digest(path)
    return found


def _digest(path: Path) -> str:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    total = hashlib.sha256()
    for file in files:
        status = file.stat()
        total.update(f"{file.relative_to(path)}\0{status.st_size}\0".encode())
        if status.st_size <= _READ_WHOLE:
            total.update(file.read_bytes())
        else:
            total.update(str(status.st_mtime_ns).encode())
    return total.hexdigest()

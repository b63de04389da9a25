"""The name on the Hub of a model that a run began with: never guessed, and never a place on this machine."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_trl.files import write_atomically
from hpt_trl.models.built_in import BUILT_IN
from hpt_trl.models.folders import is_local

# Beside a model that was pushed.
PUSHED_FILE = "hub.json"

# Of the Hub's cache: models--owner--name/snapshots/<commit>.
_SNAPSHOT = re.compile(r"models--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})/?$")
_WEIGHTS = ("config.json", "*.safetensors", "adapter_config.json")


@dataclass(frozen=True)
class Origin:
    """A model on the Hub.

    Attributes:
        name: `owner/name`, or `name` of the Hub's oldest models.
        revision: branch, tag or commit; None for the newest.
    """

    name: str
    revision: str | None = None


def origin_of(name: str, revision: str | None = None) -> Origin | None:
    """Where the very weights of a model are on the Hub; None where they are on this machine alone.

    A folder is known by its place in the Hub's cache, or by the note that a push of this package left in it.

    Args:
        name: Hub id, local folder or built-in name, as a recipe has it.
        revision: of a Hub id.
    """
    if name in BUILT_IN:
        return None
    if not is_local(name):
        return Origin(name, revision)
    folder = Path(name).expanduser()
    if found := _SNAPSHOT.search(folder.absolute().as_posix()):
        return Origin(found["name"].replace("--", "/"), found["commit"])
    return _pushed(folder)


def note_push(folder: Path, name: str, branch: str | None, commit: str) -> None:
    """Leave a note in a folder of where its model was pushed."""
    note = {"name": name, "branch": branch, "commit": commit, "weights": _stamps(folder)}
    write_atomically(folder / PUSHED_FILE, json.dumps(note, indent=2) + "\n")


def is_pushed(folder: Path, name: str, branch: str | None) -> bool:
    """Whether the model that a folder holds was pushed to a repository.

    Args:
        name: `owner/name`, or a name alone, of whichever owner.
    """
    note = _note(folder)
    return note is not None and note["branch"] == branch and name in (note["name"], note["name"].rpartition("/")[2])


def _pushed(folder: Path) -> Origin | None:
    note = _note(folder)
    return None if note is None else Origin(note["name"], note["commit"])


def _note(folder: Path) -> dict[str, Any] | None:
    """The note of a push in a folder; None where there is none, or the model is another one by now."""
    try:
        note = json.loads((folder / PUSHED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(note, dict) and {"name", "branch", "commit", "weights"} <= note.keys()
    return note if whole and note["weights"] == _stamps(folder) else None


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and time of change of a model's files: those of another model are others."""
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}

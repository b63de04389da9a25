"""The name on the Hub of a model that a run began with: never guessed, and never a place on this machine."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

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


def note_push(folder: Path, name: str, revision: str | None) -> None:
    """Leave a note in a folder of where its model was pushed."""
    note = {"name": name, "revision": revision, "weights": _stamps(folder)}
    write_atomically(folder / PUSHED_FILE, json.dumps(note, indent=2) + "\n")


def _pushed(folder: Path) -> Origin | None:
    try:
        note = json.loads((folder / PUSHED_FILE).read_text(encoding="utf-8"))
        same = note["weights"] == _stamps(folder)
        return Origin(note["name"], note["revision"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and time of change of a model's files: those of another model are others."""
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}

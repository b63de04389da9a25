"""Models in local folders whose files are what was written: by their sizes, and read as wholes before they are loaded.

What runs of this package leave has digests. Of other programs' folders only what the safetensors' headers say is known.
"""

import json
import logging
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from hpt_trl.digests import DIGESTS_FILE, damage_of, digest_of, edited_files, files_below, has_digests, noted_base
from hpt_trl.errors import UserError
from hpt_trl.files import parsed_json
from hpt_trl.models.base_weights import base_folder, weights_of
from hpt_trl.reading import read_results
from hpt_trl.run_files import RECIPE_FILE, RESULTS_FILE

logger = logging.getLogger(__name__)

AGAIN = "Copy the folder anew, or make its model again."
# No header of a safetensors file is longer.
_LONGEST_HEADER = 10**8
# In results.json: the digest of the folder's digests.
DIGESTS_KEY = "digests"
# There too: the digest of the recipe that the run wrote.
RECIPE_KEY = "recipe_digest"
_CHANGED = "%s is not what its run wrote: somebody has changed it, and it is taken as it stands."


def shown_damage(folder: str | Path) -> str | None:
    """What shows to be wrong with a model's files without reading them; None where nothing does.

    Args:
        folder: Of a model, an adapter or a value model.
    """
    place = Path(folder)
    if not has_digests(place) and _had_digests(place):
        return f"{place / DIGESTS_FILE} is missing"
    return damage_of(place, contents=False, edited=True)


def refuse_torn_weights(folder: str | Path) -> None:
    """Refuses safetensors files that are not as long as their headers tell; no weights are read.

    Args:
        folder: Of a model or an adapter; a Hub id passes unseen.

    Raises:
        UserError: the first such file.
    """
    if torn := next(filter(None, map(_torn, sorted(Path(folder).glob("*.safetensors")))), None):
        raise UserError(f"{torn}. {AGAIN}")


def refuse_damaged_model(folder: str | Path) -> None:
    """Reads a local model's files and refuses it where they are not what was written, or an adapter's base is another.

    Args:
        folder: Of a model, an adapter or a value model; a Hub id passes unseen.

    Raises:
        UserError: as `refuse_damaged_files` does; or an adapter lies over other weights than those that it was trained
            over.
    """
    refuse_damaged_files(folder)
    if _reads(Path(folder)):
        _refuse_other_base(Path(folder))


def refuse_damaged_files(folder: str | Path) -> None:
    """Reads a local model's own files and refuses it where they are not what was written.

    Settings and texts may be changed by hand, which is told; weights may not. A folder is read once as long as it stays
    as it is, and by the first process of a machine alone.

    Args:
        folder: Of a model, an adapter or a value model; a Hub id passes unseen.

    Raises:
        UserError: the first file that is missing, cut or changed.
    """
    place = Path(folder)
    if not place.is_dir():
        return
    damage = shown_damage(place)
    if damage is None and _reads(place):
        damage = _read(place, _state(place))
    if damage is not None:
        raise UserError(f"{damage}. {AGAIN}")
    refuse_torn_weights(place)


def _reads(folder: Path) -> bool:
    return has_digests(folder) and os.environ.get("LOCAL_RANK", "0") == "0"


def _refuse_other_base(adapter: Path) -> None:
    noted, base = noted_base(adapter), base_folder(adapter)
    if noted is None or base is None or weights_of(base) == noted:
        return
    if (damage := damage_of(base, contents=True, edited=True)) is not None:
        raise UserError(f"{damage}. {AGAIN}")
    raise UserError(
        f"{adapter} is an adapter over other weights than those that lie in its base model, {base}, now. Put the "
        "former ones back, or train the adapter anew. If it is meant to lie over these, remove `base` from "
        f"{adapter / DIGESTS_FILE}."
    )


def tell_changed_recipe(folder: Path) -> None:
    """Warns where a finished run's recipe is not what the run wrote; results of a former version do not know."""
    noted = (read_results(folder) or {}).get(RECIPE_KEY)
    if noted is not None and noted != digest_of(folder / RECIPE_FILE):
        logger.warning(_CHANGED, folder / RECIPE_FILE)


@lru_cache(maxsize=64)
def _read(folder: Path, state: tuple[tuple[str, int, int, int], ...]) -> str | None:
    damage = damage_of(folder, contents=True, edited=True)
    for path in [] if damage else edited_files(folder):
        logger.warning(_CHANGED, path)
    return damage


def _state(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """By which it shows that a file was written to: name, size, time and number of each."""
    found: list[tuple[str, int, int, int]] = []
    for path in [*files_below(folder), folder / DIGESTS_FILE]:
        # A run that goes on there may remove its checkpoints.
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((str(path), status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(sorted(found))


def _had_digests(folder: Path) -> bool:
    """Whether a run's results say that there are digests."""
    try:
        return bool(parsed_json((folder / RESULTS_FILE).read_bytes()).get(DIGESTS_KEY))
    except (OSError, ValueError, AttributeError):
        return False


def _torn(file: Path) -> str | None:
    """What is wrong with the length of a safetensors file, which its header tells."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= min(size - 8, _LONGEST_HEADER):
                return f"{file} is torn"
            header = json.loads(opened.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return f"{file} is torn"
    wanted = 8 + length + max(ends, default=0)
    return None if size == wanted else f"{file} has {size:,} bytes, its header tells of {wanted:,}"

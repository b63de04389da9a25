"""Paths in a recipe's file count from the file's folder first, then from the working directory.

Those of the command line count from the working directory, as everywhere; so does what a run writes.
"""

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from hpt_trl.data.generated import is_generated
from hpt_trl.files import matching
from hpt_trl.models.built_in import BUILT_IN
from hpt_trl.recipes.bundled import anchored
from hpt_trl.recipes.paths import PATH_KEYS

# What a run writes, or goes on from.
_WRITTEN = {"output_dir", "resume_from_checkpoint", "judge_cache", "reference_cache_dir", "value_cache_dir"}
# The rows' own answers, of which no other evaluation is asked.
_DEMONSTRATIONS = ("against", "demonstrations")
ANCHORED_KEYS = PATH_KEYS - _WRITTEN


def anchored_value(key: str, value: Any, folder: Path | None) -> Any:
    """Returns a key's value with the paths that lead somewhere from the recipe's folder as absolute ones.

    Of evaluations, which are recipes, also those that lead somewhere from the working directory.
    Where the working directory holds something of that name too, this is told once.

    Args:
        folder: that of the recipe; None where its paths are absolute already.
    """
    if folder is None:
        return value
    if key == "datasets" and isinstance(value, list):
        return [_entry(entry, folder) for entry in value]
    if key == "evaluations":
        return anchored(value, folder)
    if key not in ANCHORED_KEYS:
        return value
    if isinstance(value, list):
        return [anchored_value(key, item, folder) for item in value]
    return _anchored(key, value, folder) if isinstance(value, str) and value else value


def _entry(entry: Any, folder: Path) -> Any:
    """One of several data sets that are mixed, whose name stands at `path`."""
    if not isinstance(entry, dict) or "path" not in entry:
        return entry
    return {**entry, "path": anchored_value("dataset_name", entry["path"], folder)}


def _anchored(key: str, name: str, folder: Path) -> str:
    # Names of what the package makes itself are no paths.
    if (
        (key == "dataset_name" and is_generated(name))
        or (key, name) == _DEMONSTRATIONS
        or name in BUILT_IN
        or name.startswith("~")
    ):
        return name
    beside = os.path.join(os.path.abspath(folder), name)
    if os.path.abspath(name) == beside or not _leads_somewhere(beside):
        return name
    if _leads_somewhere(name) and os.path.realpath(name) != os.path.realpath(beside):
        tell_once(f"`{key}: {name}`: {beside} is taken, which lies beside the recipe, and not {os.path.abspath(name)}.")
    return beside


def _leads_somewhere(path: str) -> bool:
    try:
        # A name that is there is no pattern, whatever it is called.
        return os.path.lexists(path) or bool(matching(path))
    except ValueError:
        # A NUL; `paths_fault` says so.
        return False


@cache
def tell_once(text: str) -> None:
    """Prints a note to stderr, once in a process, and in one of several."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)

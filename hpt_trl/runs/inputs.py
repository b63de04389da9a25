"""The files on this machine that a recipe names, and digests by which other contents of the same name are told."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from hpt_trl.data.entries import every_name
from hpt_trl.data.names import files_of, is_pattern
from hpt_trl.digests import DIGESTS_FILE, digest_of, has_digests
from hpt_trl.errors import UserError
from hpt_trl.files import parsed_json
from hpt_trl.models.folders import ADAPTER_FILE
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.runs.changes import SAFE_KEYS
from hpt_trl.settings.file import Sources, read_recipe_file
from hpt_trl.settings.imported import file_of, seeing

# Larger files are known by their size and by pieces from all over them: of weights each differs between two trainings,
# and reading hundreds of gigabytes would delay every start.
_READ_WHOLE = 64 * 2**20
_PIECES, _PIECE = 64, 2**16
_DEEPEST = 20
_PATHS = ("dataset_name", "against", "pages", "evaluations", "search_index", "soft_table", "questions")
# What another evaluation is compared by; how it was scored itself says nothing.
_COMPLETIONS = "samples.json*"
# Keys that name functions and classes by their dotted path.
_CODE = ("reward_funcs", "environment")


def digests_of_inputs(values: Mapping[str, Any]) -> dict[str, str]:
    """Path -> digest of each file that a recipe names, of folders named as data, model or evaluation, and what the
    evaluations that it names name in turn.

    Args:
        values: Key -> value.
    """
    found = {}
    for key, item in _texts_of(values):
        folders = key in ("dataset_name", "against", "pages") or key.endswith("_name_or_path")
        # Any text may stand here, also one that no file system takes for a name.
        with suppress(OSError, RuntimeError, ValueError):
            path = Path(item).expanduser()
            if (path.is_file() and _may_be_path(key, item)) or (folders and path.is_dir()):
                found[item] = _digest(path, _COMPLETIONS if key == "against" else "*")
        if key in _CODE and (module := file_of(item)) is not None:
            found[str(module)] = _digest(module, "*")
        if key == "evaluations":
            named, modules = _of_evaluation(item)
            with seeing(modules):
                found |= digests_of_inputs(named)
    return found


def refuse_inputs_inside(values: Mapping[str, Any], error: Callable[[str, str], UserError]) -> None:
    """Refuses what a run would read from its own output folder, where it writes, replaces and removes files.

    The checkpoint that it goes on from, and caches that it fills, lie there by right.

    Args:
        values: Key -> value of the recipe.
        error: Makes the error about a key.

    Raises:
        UserError: a path of the recipe, of an evaluation that it names or of an adapter's base, at or below the folder.
    """
    folder = Path(values["output_dir"]).expanduser().resolve()
    for key, item, path in _named(values):
        if path.resolve().is_relative_to(folder):
            raise error(
                key,
                f"{item} lies in the `output_dir` of this run, {values['output_dir']}, where files are replaced "
                "and removed. Name another `output_dir`.",
            )


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, str, Path]]:
    """Key, text and path of whatever is there and a recipe names, what that names in turn included."""
    for key, item in _texts_of(values):
        with suppress(OSError, RuntimeError, ValueError):
            path = Path(item).expanduser()
            if _may_be_path(key, item) and path.exists():
                yield key, item, path
                yield from ((key, base, Path(base)) for base in _bases(path))
        if key == "evaluations":
            yield from ((key, found, path) for _, found, path in _named(_of_evaluation(item)[0]))


def _texts_of(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and text of what decides a run's result, but for caches; of rows the files that a pattern stands for."""
    for key, value in values.items():
        if key in SAFE_KEYS or key.endswith(("_cache", "_cache_dir")):
            continue
        if key == "datasets":
            key, value = "dataset_name", every_name(None, value)
        for text in _texts(value):
            if key == "dataset_name" and is_pattern(text):
                yield from ((key, str(path)) for path in files_of([text]))
            else:
                yield key, text


def _may_be_path(key: str, item: str) -> bool:
    """Whether a text is meant as a path: a plain word (`stage: sft`) is one only where a path is asked for."""
    asked = key in _PATHS or key.endswith(("_name_or_path", "_path"))
    return asked or os.sep in item or Path(item).suffix != ""


def _texts(value: Any) -> Iterator[str]:
    """The texts within a value."""
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)


def _bases(adapter: Path) -> Iterator[str]:
    """What an adapter lies over, as far as it is on this machine."""
    # An adapter may name itself.
    for _ in range(_DEEPEST):
        try:
            base = parsed_json((adapter / ADAPTER_FILE).read_bytes())["base_model_name_or_path"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        if not isinstance(base, str) or not Path(base).exists():
            return
        yield base
        adapter = Path(base)


def _of_evaluation(name: str) -> tuple[dict[str, Any], list[str | Path]]:
    """Keys of an evaluation and the folders of its modules; none of one that does not exist, which the check tells.

    Without its model, in whose place the stage's is measured, and evaluations, which it has none of.
    """
    try:
        sources = Sources(read_recipe_file(find_recipe(name)), {})
    except UserError:
        return {}, []
    left_out = ("model_name_or_path", "evaluations")
    return {key: value for key, value in sources.file.values.items() if key not in left_out}, sources.module_folders


def _digest(path: Path, pattern: str) -> str:
    if path.is_dir() and pattern == "*" and has_digests(path):
        # It says of each file that matters what it is; reports and pictures may come and go beside them.
        return digest_of(path / DIGESTS_FILE)
    files = [path] if path.is_file() else sorted(file for file in path.rglob(pattern) if file.is_file())
    total = xxhash.xxh3_128()
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.relative_to(path)}\0{size}\0".encode())
        with file.open("rb") as opened:
            if size <= _READ_WHOLE:
                total.update(opened.read())
            else:
                for number in range(_PIECES):
                    opened.seek((size - _PIECE) * number // (_PIECES - 1))
                    total.update(opened.read(_PIECE))
    return total.hexdigest()

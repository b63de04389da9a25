"""The files on this machine that a recipe names, and digests by which other contents of the same name are told."""

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from hpt_trl.data.entries import every_name
from hpt_trl.data.names import files_of, is_pattern, is_saved
from hpt_trl.digests import DIGESTS_FILE, add_file, digest_of, edited_files, has_digests
from hpt_trl.errors import UserError
from hpt_trl.files import parsed_json
from hpt_trl.models.folders import ADAPTER_FILE
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.runs.changes import SAFE_KEYS
from hpt_trl.settings.file import Sources, read_recipe_file
from hpt_trl.settings.imported import seeing
from hpt_trl.settings.own_modules import own_files

_DEEPEST = 20
_PATHS = ("dataset_name", "against", "pages", "evaluations", "search_index", "soft_table", "questions")
# What another evaluation is compared by; how it was scored itself says nothing.
_COMPLETIONS = "samples.json*"
# Keys that name functions and classes by their dotted path.
_CODE = ("reward_funcs", "environment")
# What is read of a model's folder: configuration, weights, tokenizer and code, not cards and files of other formats.
_OF_A_MODEL = (
    *("*.json", "*.jinja", "additional_chat_templates/*.jinja", "*.model", "*.tiktoken", "vocab.txt", "merges.txt"),
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.py"),
)


def digests_of_inputs(values: Mapping[str, Any]) -> dict[str, str]:
    """Path -> digest of each file that a recipe names, of folders named as data, model or evaluation, and what the
    evaluations that it names name in turn.

    What the run itself writes is none of it, wherever its `output_dir` lies, nor are installed modules.

    Args:
        values: Key -> value.
    """
    found = {}
    own = Path(values["output_dir"]).expanduser().resolve() if "output_dir" in values else None
    # In an order that does not depend on the recipe's, by which the inputs of a project that was moved are compared.
    for key, item in _texts_of(dict(sorted(values.items()))):
        model = key.endswith("_path")
        folders = model or key in ("dataset_name", "against", "pages")
        # Any text may stand here, also one that no file system takes for a name.
        with suppress(OSError, RuntimeError, ValueError):
            path = Path(item).expanduser()
            if (path.is_file() and _may_be_path(key, item)) or (folders and path.is_dir()):
                found[item] = _digest_of(path, own, model=model, completions=key == "against")
        if key in _CODE:
            found |= {str(module): _digest((module,), module) for module in own_files(item)}
        if key == "evaluations":
            named, modules = _of_evaluation(item)
            with seeing(modules):
                found |= digests_of_inputs(named | ({} if own is None else {"output_dir": str(own)}))
    return found


def inputs_changed(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The inputs of two recipes that differ in nothing else whose contents are others, also more or fewer of them.

    The same contents in the same order may lie at other paths.

    Args:
        old, new: path -> digest, as `digests_of_inputs` has it.
    """
    if list(old.values()) == list(new.values()):
        return []
    differ = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    alone = [name for name in differ if name in old and name in new]
    alone += [name for name in differ if (name in old) != (name in new)]
    moved = {*old.values()} & {*new.values()}
    return [name for name in alone if {old.get(name), new.get(name)}.isdisjoint(moved)] or alone


def same_files(was: str, now: str, old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Whether two texts of recipes name the same contents, by a path or a pattern (`data/*.jsonl`).

    Args:
        old, new: path -> digest of each of the recipes.
    """
    found = [_below(text, digests) for text, digests in ((was, old), (now, new))]
    return bool(found[0]) and found[0] == found[1]


def _below(text: str, digests: Mapping[str, str]) -> dict[str, str]:
    """Path -> digest of what a text names; of a pattern below the folder where it begins, with the pattern itself."""
    if not is_pattern(text):
        return {"": digests[text]} if text in digests else {}
    parts = Path(text).parts
    fixed = Path(*itertools.takewhile(lambda part: not is_pattern(part), parts))
    below = {
        str(Path(name).relative_to(fixed)): digest
        for name, digest in digests.items()
        if Path(name).is_relative_to(fixed)
    }
    return below | {"*": str(Path(text).relative_to(fixed))} if below else {}


def refuse_inputs_inside(values: Mapping[str, Any], error: Callable[[str, str], UserError]) -> None:
    """Refuses what a run would read from its own output folder, where it writes, replaces and removes files.

    The checkpoint that it goes on from, and caches that it fills, lie there by right.

    Args:
        values: Key -> value of the recipe.
        error: Makes the error about a key.

    Raises:
        UserError: a path of the recipe, of an evaluation that it names or of an adapter's base, at or below the folder,
            also by a link in a folder that is named; a module of the user's there; or a folder of rows above it, which
            what the run writes would be rows of once it goes on.
    """
    folder = Path(values["output_dir"]).expanduser().resolve()
    for key, item, path in _named(values):
        # Files of a mixture go by the key of a single data set.
        key = key if key in values or "datasets" not in values else "datasets"
        rows = key in ("dataset_name", "datasets") and path.is_dir() and not is_saved(path)
        if rows and folder.is_relative_to(path.resolve()):
            raise error(
                key,
                f"all files in {item} are read as rows, and the `output_dir` of this run, {values['output_dir']}, lies "
                "there. Name another `output_dir`.",
            )
        if any(_lies_in(place, folder) for place in _places(key, path, folder)):
            raise error(
                key,
                f"{item} lies in the `output_dir` of this run, {values['output_dir']}, where files are replaced "
                "and removed. Name another `output_dir`.",
            )


def _places(key: str, path: Path, own: Path) -> Iterator[Path]:
    """A path, and what lies in it by a link; of what is read of a model the folder itself."""
    yield path
    # What other keys name is no folder that is read.
    if path.is_dir() and (key.endswith("_path") or key in (*_PATHS, "datasets")):
        entries = path.glob("*") if key.endswith("_path") else path.rglob("*")
        yield from (entry for entry in entries if entry.is_symlink() and not _lies_in(entry.parent, own))


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is at or below a folder; not where nobody may look."""
    with suppress(OSError, RuntimeError):
        return path.resolve().is_relative_to(folder)
    return False


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, str, Path]]:
    """Key, text and path of whatever is there and a recipe names, what that names in turn included."""
    for key, item in _texts_of(values):
        with suppress(OSError, RuntimeError, ValueError):
            if key in _CODE:
                yield from ((key, item, module) for module in own_files(item))
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
    asked = key in _PATHS or key.endswith("_path")
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


def _digest_of(path: Path, own: Path | None, *, model: bool, completions: bool) -> str:
    if path.is_dir() and not completions and has_digests(path):
        # It says of each file that matters what it is; reports and pictures may come and go beside them. Settings and
        # templates may be changed by hand, and are read as they stand.
        return (
            _digest((path / DIGESTS_FILE, *edited), path)
            if (edited := _edited(path))
            else digest_of(path / DIGESTS_FILE)
        )
    if path.is_file():
        files = [path]
    elif model:
        files = [file for pattern in _OF_A_MODEL for file in path.glob(pattern)]
    else:
        files = list(path.rglob(_COMPLETIONS if completions else "*"))
    kept = (file for file in files if own is None or not file.resolve().is_relative_to(own))
    return _digest(tuple(sorted({file for file in kept if file.is_file()})), path)


def _edited(folder: Path) -> list[Path]:
    """What of a model has been changed by hand, but for its card; nothing where its digests are torn."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        return sorted(path for path in edited_files(folder) if path.is_file() and path.suffix != ".md")
    return []


def _digest(files: tuple[Path, ...], above: Path) -> str:
    known = [(file, file.stat()) for file in files]
    return _digest_read(
        tuple((file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for file, stat in known), above
    )


# A start asks for them several times over.
@functools.cache
def _digest_read(files: tuple[tuple[Path, int, int, int, int], ...], above: Path) -> str:
    total = xxhash.xxh3_128()
    for file, *_ in files:
        add_file(total, str(file.relative_to(above)), file)
    return total.hexdigest()

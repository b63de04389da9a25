"""The block `env` of a recipe: variables that are set before anything reads them."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hpt_trl.settings.imported import MODULE_FOLDERS, folders_of_modules

# Keys that name functions and classes by their dotted path.
_CODE = ("reward_funcs", "environment", "environment_options")


def variable_fault(name: Any, value: Any) -> str | None:
    """Why a line of the block cannot be set as a variable; None where it can."""
    if not str(name) or set(str(name)) & {"=", "\0"}:
        return f"{str(name)[:80]!r} cannot be the name of a variable."
    if value is None or isinstance(value, dict | list):
        said = "is empty" if value is None else "is no single value"
        return f'the value of {name!s:.80} {said}; write a text, or "".'
    return f"the value of {name!s:.80} holds a null character, which no variable can." if "\0" in str(value) else None


def environment_of(values: Mapping[str, Any], variables: Any, folders: Iterable[str | Path]) -> dict[str, Any]:
    """The block `env` of a recipe that is written elsewhere, whose modules are found from there; empty for no block.

    Args:
        values: key -> value of the recipe.
        variables: of its own block; what is no mapping is left as it is.
        folders: in which the modules that it names may lie.
    """
    if variables is not None and not isinstance(variables, dict):
        return {"env": variables}
    found = {**(variables or {})}
    paths = [text for key in _CODE for text in _texts(values.get(key))]
    if MODULE_FOLDERS not in found and (places := folders_of_modules(paths, folders)):
        found[MODULE_FOLDERS] = os.pathsep.join(places)
    return {"env": found} if found else {}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)

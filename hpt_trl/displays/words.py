"""Settings of a run given as Python values: as the words of the command line that say the same."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.settings.file import read_recipe_file

# Names a YAML of `recipe: {key: value}`; what stands there comes before a notebook's own settings.
TRIAL = "HPT_TRL_TRIAL"


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Returns the words of a command line, `--key value ...`.

    Args:
        settings: Key -> text, number, boolean, None, path, list, mapping, or a reward function of a module.

    Raises:
        UserError: a function that a recipe cannot name.
    """
    words: list[str] = []
    for key, value in settings.items():
        if isinstance(value, list | tuple) and _is_plain(value):
            words += [f"--{key}", *(_word(item, key) for item in value)]
        else:
            words.append(f"--{key}={_word(value, key)}")
    return words


def with_trial(recipe: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings with those that the file of `HPT_TRL_TRIAL` has for the recipe in their place.

    So a notebook is tried in seconds, on a tiny model and in a step or two, without a word of it changed.

    Raises:
        UserError: the file cannot be read.
    """
    path = os.environ.get(TRIAL)
    if not path:
        return dict(settings)
    return {**settings, **(read_recipe_file(Path(path)).values.get(recipe) or {})}


def _is_plain(items: Sequence[Any]) -> bool:
    """Whether each item can be a word by itself, read as what the key takes; else the list is one word of JSON."""
    return len(items) > 0 and all(
        not isinstance(item, dict | list | tuple | None) and not str(item).startswith("--") for item in items
    )


def _word(value: Any, key: str) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return _path_of(value, key) if callable(value) else str(value)


def _path_of(function: Callable[..., Any], key: str) -> str:
    """The dotted path of a function, by which a recipe names it."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = function.__module__
    if module == "__main__" or "." in name:
        short = name.rpartition(".")[2]
        raise UserError(
            f"{key}: `{short}` is not at the top of a module, where a recipe could find it again. Write it to a file "
            f"beside the notebook (`%%writefile my_rewards.py`) and name it: `my_rewards.{short}`."
        )
    return f"{module}.{name}"

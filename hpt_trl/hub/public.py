"""What a recipe and its results say to others: no place on this machine, no secret, no text that a model wrote."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from hpt_trl.data.entries import every_name
from hpt_trl.data.names import shown_names
from hpt_trl.hub.destination import HUB_KEYS
from hpt_trl.hub.run_folder import RunFolder
from hpt_trl.run_files import MARK
from hpt_trl.settings.masking import is_secret

_LEFT_OUT = (*HUB_KEYS, "overwrite", "resume_from_checkpoint", "output_dir", "env")
_BASE = "model_name_or_path"
# Texts of results.json that are no completion, prompt or place.
_TEXTS = ("recipe", "stage", "why_untrained", "success_reward", "device")
_VERSIONS = "versions"


def public_recipe(run: RunFolder, name: str) -> str:
    """The recipe as YAML for others; of what lies on this machine it has the last part of the name.

    Args:
        name: of the repository.
    """
    values = {key: _shown(key, value) for key, value in run.recipe.items() if key not in _LEFT_OUT}
    values = {key: value for key, value in values.items() if not is_secret(key)}
    if run.base is not None:
        values[_BASE] = run.base.name
        if run.base.revision is not None:
            values["model_revision"] = run.base.revision
    head = f"{MARK}\n# Files and folders of the machine that it ran on are named by the last part of their path.\n"
    values["output_dir"] = f"outputs/{name.rpartition('/')[2]}"
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def public_value(key: str, value: Any) -> Any:
    """A recipe's value for others."""
    return "<hidden>" if is_secret(key) else _shown(key, value)


def shown_data(recipe: Mapping[str, Any]) -> str:
    """The data of a recipe, for others."""
    names = every_name(recipe.get("dataset_name"), recipe.get("datasets"))
    return shown_names([str(public_value("dataset_name", name)) for name in names])


def public_results(run: RunFolder) -> dict[str, Any]:
    """The figures of a run: numbers, and a few texts that are known to be harmless."""
    results = dict(run.results or {})
    figures = _figures(results)
    figures["model"] = model_name(run)
    return figures


def model_name(run: RunFolder) -> str:
    """What the run began with, for others: a Hub id, the last part of a folder's name, or what kind of new model."""
    name = run.recipe.get(_BASE)
    if run.base is not None:
        return run.base.name
    return str((run.results or {}).get("model", "a new model")) if name is None else Path(str(name)).name


def _figures(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        found = {name: _figures(item, str(name) if key != _VERSIONS else _VERSIONS) for name, item in value.items()}
        return {name: item for name, item in found.items() if item is not None or value[name] is None}
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, str):
        return value if key in _TEXTS or key == _VERSIONS else None
    numbers = isinstance(value, list) and all(isinstance(item, bool | int | float) for item in value)
    return value if numbers else None


def _shown(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: public_value(str(name), item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(key, item) for item in value]
    if not isinstance(value, str):
        return value
    if urlsplit(value).scheme in ("http", "https"):
        return "<the address of a service>"
    return Path(value).name if _is_place(value) else value


def _is_place(text: str) -> bool:
    """Whether a text is a path of this machine; texts of several lines or of no name are none."""
    if not text or "\n" in text or len(text) > 1000:
        return False
    if text.startswith(("/", "~", "./", "../", "outputs/", "\\\\")) or re.match(r"^[A-Za-z]:[\\/]", text):
        return True
    try:
        return "/" in text and Path(text).exists()
    except (OSError, ValueError):
        return False

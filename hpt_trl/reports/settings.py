"""The recipe of a run for reading, and in what the recipes of several runs differ."""

from collections.abc import Sequence
from typing import Any

import yaml

from hpt_trl.reports.run import Run

# Says where a run lies, which the page's header has.
_LEFT_OUT = ("output_dir",)
NOT_SET = "not set"


def recipe_text(run: Run) -> str:
    """The resolved recipe as YAML, without secrets; empty where the folder holds none."""
    return yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True, width=100) if run.settings else ""


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Key -> value of each run, of the keys that are not the same in all of them."""
    flat = [_flat(run.settings) for run in runs]
    found = {}
    for key in dict.fromkeys(key for values in flat for key in values):
        said = [_said(values[key]) if key in values else NOT_SET for values in flat]
        if key not in _LEFT_OUT and len(set(said)) > 1:
            found[key] = said
    return found


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def _said(value: Any) -> str:
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("...\n").strip()

"""The figures of a run's results for a tracker's summary: one name, one number."""

from collections.abc import Mapping
from typing import Any

# Parts of results.json that hold no figure of the run.
_LEFT_OUT = ("completions", "versions", "recipe", "stage", "model", "data", "command", "warnings", "hardware")
_INTERVAL = ("low", "high")


def figures_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Every number of results.json under its path.

    Returns:
        `before/...` and `after/...` (held out), `change/...` (their difference, where both have a figure that is no
        bound of an interval), `measures/...` of an evaluation, and the rest as it stands there; an interval as
        `.../low` and `.../high`. Texts and lists of other lengths are left out.
    """
    found = _numbers({name: value for name, value in results.items() if name not in _LEFT_OUT}, "")
    changes = {}
    for name, value in found.items():
        earlier = found.get(f"before/{name.removeprefix('after/')}")
        if name.startswith("after/") and earlier is not None and not name.endswith(_INTERVAL):
            changes[f"change/{name.removeprefix('after/')}"] = value - earlier
    return found | changes


def _numbers(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, bool | int | float):
            found[name] = float(value) if isinstance(value, bool) else value
        elif isinstance(value, Mapping):
            found |= _numbers({key: item for key, item in value.items() if key not in _LEFT_OUT}, f"{name}/")
        elif isinstance(value, list) and len(value) == len(_INTERVAL) and _are_numbers(value):
            found |= {f"{name}/{bound}": number for bound, number in zip(_INTERVAL, value, strict=True)}
    return found


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)

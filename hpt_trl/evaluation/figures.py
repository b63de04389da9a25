"""The figures of an evaluation, as results.json has it: each number with its 95 % interval."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpt_trl.evaluation.intervals import Z, wilson

# What stands beside a figure, or a mapping of figures, and tells of it.
_BESIDE = ("_interval", "_intervals", "_error", "_errors", "_rows")


@dataclass(frozen=True)
class Figure:
    """A number and the bounds of its 95 % interval, None where that is not known."""

    value: float
    low: float | None = None
    high: float | None = None


def figures_of(evaluation: Mapping[str, Any] | None) -> dict[tuple[str, ...], Figure]:
    """Every number of an evaluation under its path, in the order of the evaluation; of None there is none.

    A path is the names from the outermost on: `("accuracy",)`, `("held_out", "loss")`, `("evaluations", "gsm8k",
    "pass@1")`. An interval is the one that stands beside the number (`accuracy_interval`; `held_out_intervals` of
    `held_out`), or 1.96 standard errors (`reward_error`, `held_out_errors`) to each side.
    """
    found: dict[tuple[str, ...], Figure] = {}
    values = evaluation or {}
    for name, value in values.items():
        if name == "evaluations":
            for on, inner in value.items():
                found |= {(name, on, *path): figure for path, figure in figures_of(inner).items()}
        elif name.endswith(_BESIDE):
            continue
        elif isinstance(value, Mapping):
            intervals, errors = values.get(f"{name}_intervals") or {}, values.get(f"{name}_errors") or {}
            numbers = {key: item for key, item in value.items() if _is_number(item)}
            found |= {(name, key): _figure(item, intervals.get(key), errors.get(key)) for key, item in numbers.items()}
        elif _is_number(value):
            interval = values.get(f"{name}_interval")
            if interval is None and name == "accuracy" and "samples" in values:
                # Of a run that is older than its intervals.
                interval = wilson(value, values["samples"] * values.get("num_generations", 1))
            found[name,] = _figure(value, interval, values.get(f"{name}_error"))
    return found


def _figure(value: float, interval: tuple[float, float] | None, error: float | None) -> Figure:
    if interval is not None:
        return Figure(value, *interval)
    return Figure(value) if error is None else Figure(value, value - Z * error, value + Z * error)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

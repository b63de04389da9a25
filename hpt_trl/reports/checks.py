"""Whether results.json is what a run leaves, so that a file of another form is named and not stumbled over."""

from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError

# Key -> what its value may be; of every run, of one that trained, of one that measured.
_EVERY: dict[str, Any] = {"recipe": str, "stage": str}
_TRAINED: dict[str, Any] = {
    "steps": int,
    "model": str,
    "before": (dict, type(None)),
    "after": (dict, type(None)),
    "wall_time_s": dict,
    "tokens": dict,
}
_MEASURED: dict[str, Any] = {"measures": dict}
# What a training's times and tokens are of.
_PARTS = {"wall_time_s": ("total", "train", "evaluation"), "tokens": ("training",)}
# Of an evaluation.
_MAPPINGS = ("rewards", "environment", "held_out", "held_out_errors", "held_out_intervals", "evaluations")
_WITH_ACCURACY = ("samples", "num_generations", "mean_length")
_SHARES = ("accuracy", "pass@", "avg@", "maj@", "win_rate")


def check_results(path: Path, results: dict[str, Any]) -> None:
    """Looks at all that a page and the summary read of results.json.

    Raises:
        UserError: the first value of another form.
    """
    measured = "measures" in results
    for key, kinds in (_EVERY | (_MEASURED if measured else _TRAINED)).items():
        if not isinstance(results.get(key, ...), kinds):
            raise _error(path, f"`{key}` is missing or of another kind")
    for group, parts in _PARTS.items():
        values = results.get(group, {})
        if not isinstance(values, dict):
            raise _error(path, f"`{group}` is no mapping")
        for name in values:
            if not _is_number(values[name]):
                raise _error(path, f"`{group}` holds what is no number")
        for part in () if measured else parts:
            if part not in values:
                raise _error(path, f"`{group}` lacks `{part}`")
    if results.get("trained", True) is not True and not isinstance(results.get("why_untrained"), str):
        raise _error(path, "`why_untrained` is missing")
    if not _is_number(results.get("train_loss") or 0):
        raise _error(path, "`train_loss` is no number")
    hardware = results.get("hardware", {})
    if not isinstance(hardware, dict) or not _is_number(hardware.get("peak_memory_gib", 0)):
        raise _error(path, "`hardware` is no mapping, or its `peak_memory_gib` is no number")
    overlap = results.get("overlap")
    if overlap is not None and not _has_numbers(overlap, ("rows", "of")):
        raise _error(path, "`overlap` lacks `rows` or `of`")
    for side in ("before", "after", "measures"):
        check_evaluation(path, side, results.get(side) or {})
    _check_completions(path, results)


def check_evaluation(path: Path, name: str, evaluation: dict[str, Any]) -> None:
    """Looks at all that is read of an evaluation.

    Raises:
        UserError: the first value of another form.
    """
    for key in _MAPPINGS:
        if not isinstance(evaluation.get(key, {}), dict):
            raise _error(path, f"`{key}` of `{name}` is no mapping")
    intervals = {key: value for key, value in evaluation.items() if key.endswith("_interval") and value is not None}
    for key, value in (intervals | evaluation.get("held_out_intervals", {})).items():
        if not isinstance(value, list) or len(value) != 2 or not all(map(_is_number, value)):
            raise _error(path, f"`{key}` of `{name}` is not two numbers")
    for key, value in evaluation.items():
        if (key.endswith("_error") or key == "undecided") and not (value is None or _is_number(value)):
            raise _error(path, f"`{key}` of `{name}` is no number")
        of_share = value if key.endswith("_interval") else [value]
        if key.startswith(_SHARES) and value is not None and not all(_is_share(one) for one in of_share):
            raise _error(path, f"`{key}` of `{name}` is no share from 0 to 1")
    for key, value in evaluation.get("held_out_errors", {}).items():
        if not (value is None or _is_number(value)):
            raise _error(path, f"`held_out_errors.{key}` of `{name}` is no number")
    if "accuracy" in evaluation and not _has_numbers(evaluation, ("accuracy", *_WITH_ACCURACY)):
        raise _error(path, f"`{name}` has an `accuracy` without {', '.join(_WITH_ACCURACY)}")
    for inner, found in evaluation.get("evaluations", {}).items():
        if not isinstance(found, dict):
            raise _error(path, f"`evaluations.{inner}` of `{name}` is no mapping")
        check_evaluation(path, f"{name}.evaluations.{inner}", found)
    _check_completions(path, evaluation)


def _check_completions(path: Path, values: dict[str, Any]) -> None:
    found = values.get("completions", [])
    if not isinstance(found, list) or not all(
        isinstance(one, dict)
        and all(isinstance(one.get(key), str) for key in ("prompt", "completion"))
        and isinstance(one.get("rewards", {}), dict)
        and all(value is None or _is_number(value) for value in [one.get("reward"), *one.get("rewards", {}).values()])
        for one in found
    ):
        raise _error(path, "a completion is an object with `prompt`, `completion` and `reward`")


def _has_numbers(values: Any, names: tuple[str, ...]) -> bool:
    return isinstance(values, dict) and all(_is_number(values.get(name)) for name in names)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _error(path: Path, fault: str) -> UserError:
    return UserError(
        f"{path} is not what a run of hpt-trl leaves: {fault}. Run the recipe again, or move the file away for the "
        "report of a run that has not finished."
    )

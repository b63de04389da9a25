"""What a run measured before and after its training, for the card's table and its model-index."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpt_trl.evaluation.intervals import Z

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

WHEN = {"before": "before training", "after": "after training"}
# Before the names of what the trainer measures on held-out rows.
HELD_OUT = "held-out "
# What is measured beside the figures themselves.
_BESIDE = ("_interval", "_errors", "_intervals")
_SHARES = ("accuracy", "pass@", "avg@", "maj@", "win_rate", "recall@", "ndcg@")
_MEASURES = (*_SHARES[1:], "perplexity", "loss", "bits_per_byte")


@dataclass(frozen=True)
class Figure:
    """A measure of the held-out rows.

    Attributes:
        name: as the results have it.
        on: of an evaluation that the recipe names, its name; else None.
        values: `before` and `after` -> the value; None where it has none.
        intervals: the same -> its 95 % interval, None where it is not known.
    """

    name: str
    on: str | None
    values: dict[str, float | None]
    intervals: dict[str, tuple[float, float] | None]

    def shown(self, when: str) -> str:
        """The value with its interval, for reading."""
        value, interval = self.values.get(when), self.intervals.get(when)
        if value is None:
            return "—"
        number = "{:.1%}" if self.name.startswith(_SHARES) else "{:.4g}"
        known = "" if interval is None else f" ({number.format(interval[0])} to {number.format(interval[1])})"
        return number.format(value) + known


def figures_of(results: Mapping[str, Any]) -> list[Figure]:
    """Every measure of the evaluations before and after a training, in the order of the results."""
    both = {when: _flat(results.get(when) or {}) for when in WHEN}
    keys = list(dict.fromkeys([*both["after"], *both["before"]]))
    return [
        Figure(
            name=name,
            on=on,
            values={when: found.get((name, on), (None, None))[0] for when, found in both.items()},
            intervals={when: found.get((name, on), (None, None))[1] for when, found in both.items()},
        )
        for name, on in keys
    ]


def eval_results(figures: list[Figure], *, task: str, data: str, split: str | None) -> "list[EvalResult]":
    """The figures for a card's model-index: those before the training, and those after it."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task,
            dataset_type=figure.on or data,
            dataset_name=figure.on or data,
            dataset_split=None if figure.on else split,
            metric_type=figure.name.removeprefix(HELD_OUT),
            metric_name=f"{figure.name} {said}",
            metric_value=value,
        )
        for figure in figures
        for when, said in WHEN.items()
        if (value := figure.values[when]) is not None
    ]


_Found = dict[tuple[str, str | None], tuple[float | None, tuple[float, float] | None]]


def _flat(evaluation: Mapping[str, Any]) -> _Found:
    found: _Found = {}
    if _is_number(evaluation.get("accuracy")):
        found["accuracy", None] = (evaluation["accuracy"], _interval(evaluation.get("accuracy_interval")))
    rewards = evaluation.get("rewards") or {}
    found |= {(f"reward {name}", None): (value, None) for name, value in rewards.items() if _is_number(value)}
    if len(rewards) > 1 and _is_number(evaluation.get("reward")):
        found["weighted reward", None] = (evaluation["reward"], None)
    found |= {
        (name, None): (value, None)
        for name, value in (evaluation.get("environment") or {}).items()
        if _is_number(value)
    }
    errors, intervals = evaluation.get("held_out_errors") or {}, evaluation.get("held_out_intervals") or {}
    for name, value in (evaluation.get("held_out") or {}).items():
        if not _is_number(value):
            continue
        interval = _interval(intervals.get(name))
        if interval is None and _is_number(errors.get(name)):
            interval = (value - Z * errors[name], value + Z * errors[name])
        found[f"{HELD_OUT}{name}", None] = (value, interval)
    for on, measured in (evaluation.get("evaluations") or {}).items():
        for name, value in measured.items():
            if _is_number(value) and name.startswith(_MEASURES) and not name.endswith(_BESIDE):
                found[name, on] = (value, _interval(measured.get(f"{name}_interval")))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _interval(value: Any) -> tuple[float, float] | None:
    return (value[0], value[1]) if isinstance(value, list | tuple) and len(value) == 2 else None

"""What a run measured before and after its training, for the card's table and its model-index."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpt_trl.evaluation.figures import Figure, figures_of

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

WHEN = {"before": "before training", "after": "after training"}
_WEIGHTED = ("weighted reward", None)
# Before the names of what the trainer measures on held-out rows.
HELD_OUT = "held-out "
_SHARES = ("accuracy", "pass@", "avg@", "maj@", "win_rate", "recall@", "ndcg@")
_MEASURES = (*_SHARES[1:], "perplexity", "loss", "bits_per_byte")


@dataclass(frozen=True)
class Measure:
    """What was measured on the held-out rows, before and after a training.

    Attributes:
        name: for readers.
        on: of an evaluation that the recipe names, its name; else None.
        figures: `before` and `after` -> the figure; only those that there are.
    """

    name: str
    on: str | None
    figures: dict[str, Figure]

    def shown(self, when: str) -> str:
        """The value with its interval, for reading."""
        figure = self.figures.get(when)
        if figure is None:
            return "—"
        number = "{:.1%}" if self.name.startswith(_SHARES) else "{:.4g}"
        known = "" if figure.low is None else f" ({number.format(figure.low)} to {number.format(figure.high)})"
        return number.format(figure.value) + known


def measures_of(results: Mapping[str, Any]) -> list[Measure]:
    """Every measure of the evaluations before and after a training, in the order of the results."""
    both = {when: _named(results.get(when)) for when in WHEN}
    keys = list(dict.fromkeys([*both["after"], *both["before"]]))
    # Where one reward alone has a weight, it stands there under its name.
    sides = {key: [found[key].value for found in both.values() if key in found] for key in keys}
    if any(name.startswith("reward ") and values == sides.get(_WEIGHTED) for (name, _), values in sides.items()):
        keys.remove(_WEIGHTED)
    return [
        Measure(name, on, {when: found[name, on] for when, found in both.items() if (name, on) in found})
        for name, on in keys
    ]


def eval_results(measures: list[Measure], *, task: str, data: str, split: str | None) -> "list[EvalResult]":
    """The figures for a card's model-index: those before the training, and those after it."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task,
            dataset_type=measure.on or data,
            dataset_name=measure.on or data,
            dataset_split=None if measure.on else split,
            metric_type=measure.name.removeprefix(HELD_OUT),
            metric_name=f"{measure.name} {said}",
            metric_value=measure.figures[when].value,
        )
        for measure in measures
        for when, said in WHEN.items()
        if when in measure.figures
    ]


def _named(evaluation: Mapping[str, Any] | None) -> dict[tuple[str, str | None], Figure]:
    """Name and evaluation -> the figure, of what a card tells."""
    found: dict[tuple[str, str | None], Figure] = {}
    everything = figures_of(evaluation)
    rewards = [path for path in everything if path[0] == "rewards"]
    for path, figure in everything.items():
        match path:
            case ("accuracy",):
                found["accuracy", None] = figure
            case ("rewards", name):
                found[f"reward {name}", None] = figure
            case ("reward",) if len(rewards) > 1:
                found[_WEIGHTED] = figure
            case ("environment", name):
                found[name, None] = figure
            case ("held_out", name):
                found[f"{HELD_OUT}{name}", None] = figure
            case ("evaluations", on, name) if name.startswith(_MEASURES):
                found[name, on] = figure
    return found

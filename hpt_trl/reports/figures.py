"""What a run measured, before and after, with 95 % intervals, as the rows of a table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpt_trl.evaluation.figures import Figure, figures_of
from hpt_trl.reports.run import Run
from hpt_trl.runs.verdicts import UNKNOWN, verdict

ANSWERS, HELD_OUT, MEASURES = "Answers to held-out prompts", "Held-out rows", "Measures"

# Measures of which it is known what is better; of others a change is shown and not judged.
_JUDGED = ("accuracy", "reward", "rewards/accuracies", "mean_token_accuracy", "margin", "rewards/margins", "loss")
_SHARES = ("pass@", "avg@", "maj@", "win_rate")
# Of an evaluation: no measures of the model.
_NO_MEASURES = ("rows", "samples", "n", "num_generations", "temperature", "max_new_tokens", "tokens", "scored_tokens")
# Numbers that are shares, beside those with an interval from 0 to 1.
_ALSO_SHARES = ("truncated", "without_answer", "accuracy", *_SHARES, "recall@", "ndcg@")


@dataclass(frozen=True)
class Pair:
    """A measure of one run.

    Attributes:
        run: The run's place among those of the page.
        verdict: Whether it got better, as `hpt_trl.runs.verdicts` has it; empty where that is not known.
    """

    run: int
    before: Figure | None
    after: Figure | None
    verdict: str


@dataclass(frozen=True)
class Row:
    """A measure of all runs that have it.

    Attributes:
        key: Its name in results.json.
        label: Its name within its group.
        low, high: What a picture of all its figures spans.
    """

    key: str
    label: str
    is_share: bool
    pairs: tuple[Pair, ...]
    low: float
    high: float

    @property
    def has_picture(self) -> bool:
        """Whether a picture says more than a dot in its middle."""
        figures = [figure for pair in self.pairs for figure in (pair.before, pair.after) if figure is not None]
        bounds = {bound for one in figures for bound in (one.value, one.low, one.high) if bound is not None}
        return self.is_share or len(bounds) > 1

    def place(self, value: float) -> float:
        """Where a value lies in the picture, from 0 to 100."""
        return 100 * (value - self.low) / (self.high - self.low)


def groups_of(runs: Sequence[Run]) -> dict[str, list[Row]]:
    """Title -> rows of every group of measures that the runs have."""
    sides = [(_named(run.before), _named(run.measures if run.measures is not None else run.after)) for run in runs]
    keys = sorted(dict.fromkeys(key for pair in sides for side in (pair[1], pair[0]) for key in side), key=_rank)
    groups: dict[str, list[Row]] = {}
    for key in keys:
        values = [side.get(key) for pair in sides for side in pair]
        if _is_double(key, [side for pair in sides for side in pair]):
            continue
        pairs = tuple(
            Pair(place, before.get(key), after.get(key), _judged(run, key))
            for place, (run, (before, after)) in enumerate(zip(runs, sides, strict=True))
            if key in before or key in after
        )
        group, name = key
        is_share = _is_share(name, pairs)
        low, high = _span([value for value in values if value is not None], is_share)
        groups.setdefault(_title(group, runs), []).append(Row(_full(key), name, is_share, pairs, low, high))
    return groups


# A group and the measure's name in it.
_Key = tuple[str, str]


def _named(evaluation: Mapping[str, Any] | None) -> dict[_Key, Figure]:
    found: dict[_Key, Figure] = {}
    for path, figure in figures_of(evaluation).items():
        *group, name = path
        # What could not be judged is said where there was such a thing.
        if name in _NO_MEASURES or (name in ("unscored", "undecided") and not figure.value):
            continue
        match group:
            case ["held_out"]:
                found[HELD_OUT, name] = figure
            case ["evaluations", on, *inner]:
                found[f"evaluations.{on}", ".".join([*inner, name])] = figure
            case _:
                found[ANSWERS, ".".join(path)] = figure
    return found


def _judged(run: Run, key: _Key) -> str:
    group, name = key
    if run.before is None or run.after is None or not (name in _JUDGED or name.startswith(_SHARES)):
        return ""
    before, after, measure = run.before, run.after, name
    if group == HELD_OUT:
        measure = f"held_out.{name}"
    elif group != ANSWERS:
        named = group.removeprefix("evaluations.")
        before, after = (side.get("evaluations", {}).get(named, {}) for side in (before, after))
    if key not in _named(run.before) or key not in _named(run.after):
        return ""
    said = verdict(measure, before, after)
    return "" if said == UNKNOWN else said


def _full(key: _Key) -> str:
    group, name = key
    return f"held_out.{name}" if group == HELD_OUT else name if group == ANSWERS else f"{group}.{name}"


def _rank(key: _Key) -> tuple[int, int]:
    """Answers before held-out rows before named evaluations; the solved share first, then the rewards."""
    group, name = key
    of_group = (ANSWERS, HELD_OUT).index(group) if group in (ANSWERS, HELD_OUT) else 2
    of_name = (
        0 if name == "accuracy" or name.startswith(_SHARES) else ("reward", "rewards", "").index(_of_reward(name)) + 1
    )
    return of_group, of_name


def _of_reward(name: str) -> str:
    first = name.partition(".")[0]
    return first if first in ("reward", "rewards") else ""


def _title(group: str, runs: Sequence[Run]) -> str:
    if group == ANSWERS and all(run.measures is not None for run in runs):
        return MEASURES
    return f"Evaluation {group.removeprefix('evaluations.')}" if group.startswith("evaluations.") else group


def _is_double(key: _Key, sides: Sequence[dict[_Key, Figure]]) -> bool:
    """Whether a reward says what the measure before it says: one reward alone is the weighted one, or the accuracy."""
    group, name = key
    if (
        not name.startswith("reward")
        or len({other for side in sides for other in side if _is_reward(other, group)}) > 1
    ):
        return False
    own = [side.get(key) for side in sides]
    others = [[side.get((group, other)) for side in sides] for other in ("accuracy", "reward") if (group, other) != key]
    return any(_values(own) == _values(other) for other in (others if name != "reward" else others[:1]))


def _is_reward(key: _Key, group: str) -> bool:
    return key[0] == group and key[1].startswith("rewards.")


def _values(figures: Sequence[Figure | None]) -> list[float | None]:
    return [None if one is None else one.value for one in figures]


def _is_share(name: str, pairs: Iterable[Pair]) -> bool:
    figures = [figure for pair in pairs for figure in (pair.before, pair.after) if figure is not None]
    if not all(0 <= figure.value <= 1 for figure in figures):
        return False
    return name.startswith(_ALSO_SHARES) or name in ("rewards/accuracies", "mean_token_accuracy")


def _span(figures: list[Figure], is_share: bool) -> tuple[float, float]:
    if is_share:
        return 0.0, 1.0
    bounds = [bound for one in figures for bound in (one.value, one.low, one.high) if bound is not None]
    low, high = min(bounds), max(bounds)
    room = 0.08 * (high - low) or abs(high) or 1.0
    return low - room, high + room

"""What scored completions come to: the figures that every evaluation has, and a completion's line for reading."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from hpt_trl.data.messages import as_text
from hpt_trl.data.reading.places import ROW
from hpt_trl.environments.faults import columns
from hpt_trl.evaluation.intervals import clustered
from hpt_trl.evaluation.scoring import Judge, Scored


def summarised(scored: Sequence[Scored], judge: Judge) -> dict[str, Any]:
    """The figures of scored completions.

    Returns:
        `success_reward` (the name of the reward that decides what is solved), `reward` (mean weighted reward, None if
        nothing was scored), `rewards` (name -> mean of that reward where it applies), `unscored` (completions without a
        finite weighted reward), `undecided` (completions to which `success_reward` gives no finite value: they count as
        not solved), `mean_length` (tokens), `truncated` (share of completions cut at the limit), `tokens` (read and
        generated), and in an environment `environment` (means of what it measures) and `ended` (why rollouts ended ->
        how many).
    """
    return {
        "success_reward": judge.names[judge.success],
        "reward": mean([one.reward for one in scored]),
        "rewards": {name: mean([one.values[place] for one in scored]) for place, name in enumerate(judge.names)},
        "unscored": sum(one.reward is None for one in scored),
        "undecided": sum(not _is_known(one.values[judge.success]) for one in scored),
        "mean_length": fmean(one.sample.length for one in scored),
        "truncated": fmean(one.sample.truncated for one in scored),
        "tokens": sum(len(one.sample.ids) + len(one.sample.prompt_ids) for one in scored),
        **_of_environments(scored),
    }


def _of_environments(scored: Sequence[Scored]) -> dict[str, Any]:
    played = [one.sample.played for one in scored if one.sample.played is not None]
    if not played:
        return {}
    measured = columns([one["measures"] for one in played], "measures")
    return {
        "environment": {name: mean(values) for name, values in measured.items()},
        "ended": dict(sorted(Counter(one["facts"]["ended"] for one in played).items())),
    }


def with_interval(name: str, shares: Sequence[float], size: int) -> dict[str, Any]:
    """The mean over rows under its name, with its interval; each share was found by about `size` trials."""
    return {name: fmean(shares), f"{name}_interval": list(clustered(shares, size))}


def line_of(one: Scored, row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A scored completion of a row for reading.

    Args:
        row: The row that it answers; the line names it by its place in the data, else by that among the rows.
        names: Of the rewards.
    """
    return {
        "row": row.get(ROW, one.sample.index),
        "generation": one.sample.generation,
        "solved": one.solved,
        "reward": one.reward,
        "rewards": dict(zip(names, one.values, strict=True)),
        "length": one.sample.length,
        "truncated": one.sample.truncated,
        "prompt": as_text(row["prompt"]),
        "completion": one.text,
        "answer": row.get("answer"),
    }


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are known and finite; None without any."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(known) if known else None


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)

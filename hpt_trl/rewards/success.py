"""What is solved: one named reward decides it, by its own value and not by the weighted sum.

A sum says nothing about being right: a format reward beside the right answer lifts a wrong answer over the threshold,
and a length penalty keeps a right one below it.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.rewards.code.rewards import CodeReward
from hpt_trl.rewards.functions import boxed_format, exact_match, math_answer, reasoning_gym, story_score
from hpt_trl.rewards.judge.reward import JudgedAnswer
from hpt_trl.rewards.positive_words import positive_words
from hpt_trl.rewards.searching import action_format, answer_exact, answer_match, crop_overlap, page_ndcg, page_recall

# Rewards are float32 in the trainers: a reward of 0.7 + 0.2 + 0.1 must still reach a threshold of 1.
THRESHOLD_SLACK = 1e-6

# The least and the greatest value of the bundled rewards.
_RANGES: dict[Any, tuple[float, float]] = {
    math_answer: (0.0, 1.0),
    exact_match: (0.0, 1.0),
    boxed_format: (0.0, 1.0),
    reasoning_gym: (0.0, 1.0),
    story_score: (0.0, 1.0),
    positive_words: (-1.0, 1.0),
    answer_match: (0.0, 1.0),
    answer_exact: (0.0, 1.0),
    action_format: (0.0, 1.0),
    page_ndcg: (0.0, 1.0),
    page_recall: (0.0, 1.0),
    crop_overlap: (0.0, 1.0),
}


def success_index(names: Sequence[str], success_reward: str | None) -> int:
    """The place of the reward that decides what is solved.

    Args:
        names: Names of all rewards, in order (TRL's `reward_func_names`).
        success_reward: One of them, or the dotted path or folder whose last part is one of them; None is the first.

    Raises:
        ValueError: no reward of that name, or several. The message names the nearest one and all of them.
    """
    if success_reward is None:
        return 0
    if success_reward in names:
        return list(names).index(success_reward)
    last = re.split(r"[./]", success_reward.rstrip("./"))[-1]
    if names.count(last) == 1:
        return list(names).index(last)
    near = difflib.get_close_matches(last, names, n=1)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    raise UserError(f"success_reward: no reward is called `{success_reward}`.{hint} Allowed: {', '.join(names)}.")


def is_solved(value: float | None, threshold: float) -> bool:
    """Whether the raw value of the success reward reaches the threshold; None, NaN and infinity do not."""
    return value is not None and threshold - THRESHOLD_SLACK <= value < float("inf")


def reward_range(reward: Callable[..., Any]) -> tuple[float, float] | None:
    """The least and the greatest value of a bundled reward, guarded or not; None for any other."""
    bundled = inspect.unwrap(reward)
    if isinstance(bundled, CodeReward | JudgedAnswer):
        return 0.0, 1.0
    return next((limits for known, limits in _RANGES.items() if known is bundled), None)


def check_threshold(reward: Callable[..., Any], threshold: float, *, name: str, key: str) -> None:
    """Checks a threshold against the range that the success reward declares.

    Args:
        reward: The success reward, guarded or not; one that declares no range passes.
        name: What the recipe calls it.
        key: The setting that holds the threshold.

    Raises:
        UserError: every completion reaches it, or none does.
    """
    limits = reward_range(reward)
    if limits is None:
        return
    least, most = limits
    reached = "every completion, also an empty one, reaches" if threshold - THRESHOLD_SLACK <= least else None
    reached = "no completion can reach" if threshold - THRESHOLD_SLACK > most else reached
    if reached:
        raise UserError(
            f"{key}: {threshold:g}, which {reached}: `{name}`, the `success_reward`, gives {least:g} to {most:g}. "
            f"Allowed: above {least:g}, at most {most:g}, e.g. {key}: {most:g}."
        )

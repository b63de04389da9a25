"""What is said where the data, or an episode, lacks what a reward reads."""

from collections.abc import Sequence
from typing import Any

from hpt_trl.errors import UserError

# Rewards that score one family of generated datasets.
_DATASETS = {"reasoning_gym": "reasoning_gym:<task>", "story_score": "stories:<part>"}

# What an environment says of an episode; it reaches rewards as columns do, one entry for each completion.
FACTS = ("final_answer", "retrieved_pages", "crops", "turns", "searches", "invalid_actions", "ended")


def required(reward: str, column: str, values: Sequence[Any] | None) -> Sequence[Any]:
    """Returns the values of a column that a reward cannot do without.

    Raises:
        UserError: there is none.
    """
    if values is None:
        raise UserError(missing_column(reward, column, "the data has no such column"))
    return values


def required_fact(reward: str, fact: str, values: Sequence[Any] | None) -> Sequence[Any]:
    """Returns what the environment says of each episode, one of `FACTS`.

    Raises:
        UserError: the completions are no episodes.
    """
    if values is None:
        raise UserError(
            f"reward_funcs: `{reward}` scores episodes of an environment and reads `{fact}` of each, which these "
            "completions do not have: no environment answered them. Drop the reward, or train in the environment."
        )
    return values


def missing_column(reward: str, column: str, found: str) -> str:
    """Returns the message about a column that is not there."""
    if reward in _DATASETS:
        return f"reward_funcs: `{reward}` scores datasets `{_DATASETS[reward]}` only ({found})."
    return (
        f"reward_funcs: `{reward}` reads the column `{column}` ({found}). Name the column that holds it, e.g. "
        f"column_mapping: {{{column}: solution}}"
    )

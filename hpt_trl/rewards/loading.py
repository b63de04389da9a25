"""Rewards by name or dotted path, and the check that the data has their columns."""

import inspect
from collections.abc import Sequence

from datasets import Dataset

from hpt_trl.errors import UserError
from hpt_trl.rewards.arguments import RewardArguments
from hpt_trl.rewards.code.rewards import CodeReward
from hpt_trl.rewards.columns import missing_column
from hpt_trl.rewards.configured import ConfiguredReward
from hpt_trl.rewards.functions import REQUIRED_COLUMNS, REWARDS, Reward
from hpt_trl.rewards.names import is_path, unknown_reward
from hpt_trl.settings.imported import imported


def load_rewards(names: Sequence[str], arguments: RewardArguments | None = None) -> list[Reward]:
    """Return the rewards of `names`, each a key of `REWARDS` or the dotted path of a function.

    Dotted paths are also looked up in the working directory, as `python -m` does.

    Args:
        arguments: the recipe's keys, for rewards that have some of their own; by default these have their defaults.

    Raises:
        UserError: no names, an unknown name, a dotted path that cannot be imported or called, a reward that runs
            programs where no sandbox can be set up, or a judge without what it needs.
    """
    if not names:
        raise UserError(f"reward_funcs: name at least one reward ({', '.join(REWARDS)}, or a dotted path).")
    rewards = [REWARDS[name] if name in REWARDS else _import_reward(name) for name in names]
    if arguments is None:
        return rewards
    return [reward.configured(arguments) if isinstance(reward, ConfiguredReward) else reward for reward in rewards]


def check_columns(names: Sequence[str], columns: Sequence[str], source: str) -> None:
    """Check that the data has the columns that the named rewards read.

    Raises:
        UserError: a column is missing.
    """
    for name in names:
        reward = REWARDS.get(name)
        if isinstance(reward, CodeReward):
            reward.check_columns(columns, source)
        column = REQUIRED_COLUMNS.get(name)
        if column is not None and column not in columns:
            raise UserError(missing_column(name, column, f"{source} has only {', '.join(columns)}"))


def check_rows(rewards: Sequence[Reward], rows: Dataset, source: str) -> None:
    """Check that rewards can be given to every row: that it has the tests that they run.

    Raises:
        UserError: the first row that has none.
    """
    for reward in rewards:
        if isinstance(reward, CodeReward):
            reward.check_rows(rows, source)


def columns_read(rewards: Sequence[Reward]) -> set[str] | None:
    """Return the columns that rewards read by their signatures; None where one may read any (`**columns`)."""
    read: set[str] = set()
    for reward in rewards:
        parameters = inspect.signature(reward).parameters.values()
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        # The bundled ones take what they do not read.
        if takes_any and reward not in REWARDS.values() and not isinstance(reward, ConfiguredReward):
            return None
        read.update(parameter.name for parameter in parameters)
    return read


def _import_reward(name: str) -> Reward:
    if not is_path(name):
        raise unknown_reward(name, REWARDS)
    reward = imported(name, "reward_funcs")
    if inspect.isclass(reward) or not callable(reward):
        kind = "a class; name a function or an instance" if inspect.isclass(reward) else "not callable; name a function"
        raise UserError(f"reward_funcs: `{name}` is {kind} with the signature (prompts, completions, **columns).")
    return reward

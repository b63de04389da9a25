"""Distinct names of rewards: metrics, the completions table, results and `success_reward` go by them."""

import functools
import inspect
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.settings.values import did_you_mean

# Rewards of open-r1 -> what to name here.
_ELSEWHERE = {
    "accuracy": "`math_answer`",
    "code": "`code_tests`, which reads the column `tests`",
    "binary_code": "`all_code_tests`, which reads the column `tests`",
    "format": "`boxed_format`, or a function of your own for other tags",
    **dict.fromkeys(
        (
            *("tag_count", "reasoning_steps", "cosine", "repetition_penalty", "length", "ioi_code", "cf_code"),
            *("code_format", "soft_overlong_punishment"),
        ),
        "a function of your own",
    ),
}


def is_path(name: str) -> bool:
    """Whether a recipe's name of a reward is the dotted path of a function of the user's."""
    return "." in name.strip(".")


def unknown_reward(name: str, known: Iterable[str]) -> UserError:
    """Return (do not raise) the error about a name that no reward has.

    Args:
        known: names of the bundled rewards.
    """
    known = list(known)
    if name in _ELSEWHERE:
        return UserError(f"reward_funcs: unknown reward `{name}`. Write {_ELSEWHERE[name]} (docs/rewards.md).")
    return UserError(
        f"reward_funcs: unknown reward `{name[:200]}`.{did_you_mean(name[:200], known)} Known: "
        f"{', '.join(known)}; your own function goes by its dotted path, e.g. my_package.rewards.brevity"
    )


def distinct_names(rewards: Sequence[Any], paths: Sequence[str | None] | None = None) -> list[str]:
    """One name for each reward, no two alike.

    A reward is called as TRL calls it: by its function, its class or its model. Rewards of one such name are called by
    their whole path (module and name, or folder), and where that is the same too they are numbered from 1.

    Args:
        rewards: Functions, partials, instances, or models.
        paths: Dotted paths by which a recipe names them; their last part then stands for the name.
    """
    named = list(zip(rewards, [None] * len(rewards) if paths is None else paths, strict=True))
    whole = [path or _path(reward) for reward, path in named]
    short = [path.rpartition(".")[2] if path else _short(reward) for reward, path in named]
    alike = {name: {path for path, other in zip(whole, short, strict=True) if other == name} for name in short}
    return numbered([path if len(alike[name]) > 1 else name for name, path in zip(short, whole, strict=True)])


def numbered(names: Sequence[str]) -> list[str]:
    """The names, of which those that stand more than once are numbered: `brevity_1`, `brevity_2`."""
    counts, taken, found = Counter(names), set(names), list(names)
    for index, name in enumerate(names):
        if counts[name] > 1:
            number = 1
            while (candidate := f"{name}_{number}") in taken:
                number += 1
            taken.add(candidate)
            found[index] = candidate
    return found


def _short(reward: Any) -> str:
    from torch.nn import Module
    from trl.trainer.utils import get_callable_name

    if isinstance(reward, Module):
        return _model_id(reward).split("/")[-1]
    return get_callable_name(reward)


def _path(reward: Any) -> str:
    """Module and name; of a model its folder or Hub id."""
    from torch.nn import Module

    from hpt_trl.rewards.reward_model import RewardModel

    if isinstance(reward, RewardModel | Module):
        name = reward.name if isinstance(reward, RewardModel) else _model_id(reward)
        return name.strip("./").replace("/", "-")
    while isinstance(reward, functools.partial):
        reward = reward.func
    named = reward if inspect.isroutine(reward) else type(reward)
    return f"{named.__module__}.{named.__qualname__}"


def _model_id(model: Any) -> str:
    from trl.trainer.utils import get_config_model_id

    return get_config_model_id(model.config)

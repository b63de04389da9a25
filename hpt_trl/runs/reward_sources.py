"""The rewards of a run: functions and models, loaded, guarded and named."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from trl.trainer.utils import get_callable_name

from hpt_trl.errors import UserError
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.rewards.guarding import guard
from hpt_trl.rewards.judge.reward import JudgedAnswer
from hpt_trl.rewards.loading import load_rewards
from hpt_trl.rewards.names import distinct_names
from hpt_trl.rewards.reward_model import RewardModel
from hpt_trl.runs.acting import rows_placed
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.probe import Probe, check_thresholds, success_of


@dataclass(frozen=True)
class Rewards:
    """What scores completions.

    Attributes:
        functions: as they were loaded.
        models: reward models.
        guarded: all of them under names of their own, the functions first.
        success: place of the one that decides what is solved.
    """

    functions: list[Callable[..., Any]]
    models: list[RewardModel]
    guarded: list[Callable[..., Any]]
    success: int

    @property
    def names(self) -> list[str]:
        """Of all of them."""
        return _names(self.guarded)


def load_functions(recipe: Recipe) -> list[Callable[..., Any]]:
    """The reward functions that a recipe names."""
    return load_rewards(recipe.arguments.reward_funcs, recipe.arguments) if recipe.arguments.reward_funcs else []


def rewards_of(recipe: Recipe, functions: list[Callable[..., Any]]) -> Rewards:
    """The reward functions of a recipe, and the reward models that it names beside them."""
    models = _reward_models(recipe)
    guarded = _guarded(recipe, functions, models)
    return Rewards(functions, models, guarded, success_of(recipe, _names(guarded)))


def try_rewards(prepared: Prepared, rewards: Rewards) -> None:
    """Has the functions score a few demonstrations, and holds the threshold of success against the rewards.

    Raises:
        UserError: one fails, or gives what the recipe does not mean.
    """
    recipe, functions = prepared.recipe, rewards.functions
    # A judge costs money.
    if functions and not any(isinstance(reward, JudgedAnswer) for reward in functions):
        with rows_placed(prepared.splits):
            Probe(
                recipe,
                prepared.splits,
                prepared.encoder,
                rewards.guarded[: len(functions)],
                rewards.names,
                prepared.judge_weights[: len(functions)],
                rewards.success,
                prepared.acting,
            ).check()
    if rewards.guarded:
        check_thresholds(recipe, rewards.guarded[rewards.success], rewards.names[rewards.success])


def _names(rewards: list[Callable[..., Any]]) -> list[str]:
    return [get_callable_name(reward) for reward in rewards]


def _reward_models(recipe: Recipe) -> list[RewardModel]:
    names = recipe.arguments.reward_model_name_or_path or []
    try:
        loaded = [RewardModel(name, trust_remote_code=recipe.setting("trust_remote_code", False)) for name in names]
    except UserError as error:
        message = str(error).removeprefix("reward_model_name_or_path: ")
        raise recipe.error("reward_model_name_or_path", message) from error
    return loaded


def _guarded(
    recipe: Recipe, functions: list[Callable[..., Any]], models: list[RewardModel]
) -> list[Callable[..., Any]]:
    """All rewards under names of their own, which metrics, results and `success_reward` go by."""
    paths = [*(recipe.arguments.reward_funcs or []), *([None] * len(models))]
    rewards = cast(list[Callable[..., Any]], [*functions, *models])
    return [guard(reward, name) for reward, name in zip(rewards, distinct_names(rewards, paths), strict=True)]

"""The stage `ppo`: recipes that train with PPOTrainer."""

from typing import Any

from transformers import Trainer

from hpt_trl.errors import UserError
from hpt_trl.methods.ppo.config import PPOConfig
from hpt_trl.methods.ppo.trainer import PPOTrainer, refuse_what_cannot_work
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.rollouts.ranges import ROLLOUT_RULES
from hpt_trl.rollouts.sampling import check_sampling
from hpt_trl.settings.ranges import at_least
from hpt_trl.token_scores.values import value_source


def check(recipe: Recipe) -> None:
    """Refuse settings that the trainer would refuse, and a value model that does not fit, before anything is loaded."""
    try:
        refuse_what_cannot_work(recipe.config)
        check_sampling(recipe.config)
    except ValueError as error:
        raise recipe.place(error) from None
    policy, trusted = recipe.model_args.model_name_or_path, recipe.config.trust_remote_code
    if recipe.config.value_model_name_or_path is None:
        return
    try:
        value_model = value_source(recipe.config.value_model_name_or_path, trust_remote_code=trusted)
        value_model.load_config()
        tokenizers: list[Any] = [
            value_model.load_tokenizer(),
            load_tokenizer(str(policy), trust_remote_code=trusted),
        ]
    except UserError as error:
        message = str(error).removeprefix("value_model_name_or_path: ").removeprefix("model_name_or_path: ")
        raise recipe.error("value_model_name_or_path", message) from error
    if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        raise recipe.error(
            "value_model_name_or_path",
            f"{value_model.name} has another vocabulary than {policy}, whose tokens it is to read; name one with the "
            "same.",
        )


def build(inputs: StageInputs) -> Trainer:
    return PPOTrainer(**inputs.rollout_arguments())


STAGE = Stage(
    name="ppo",
    config_class=PPOConfig,
    build=build,
    check=check,
    rules=(*ROLLOUT_RULES, at_least(1, "num_generations")),
    rewards="required",
    completion_length=lambda config: config.max_completion_length,
)

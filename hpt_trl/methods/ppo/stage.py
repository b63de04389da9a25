"""The stage `ppo`: recipes that train with PPOTrainer."""

from typing import Any

from transformers import Trainer

from hpt_trl.errors import UserError
from hpt_trl.methods.ppo.config import PPOConfig
from hpt_trl.methods.ppo.trainer import PPOTrainer, refuse_what_cannot_work
from hpt_trl.models.loading import load_tokenizer, model_exists, resolve_model
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.rollouts.ranges import ROLLOUT_RULES
from hpt_trl.rollouts.sampling import check_sampling
from hpt_trl.settings.ranges import at_least


def check(recipe: Recipe) -> None:
    """Refuse settings that the trainer would refuse, and a value model that does not fit, before anything is loaded."""
    try:
        refuse_what_cannot_work(recipe.config)
        check_sampling(recipe.config)
    except ValueError as error:
        raise recipe.place(error) from None
    value_model, policy = recipe.config.value_model_name_or_path, recipe.model_args.model_name_or_path
    if value_model is None:
        return
    settings = {"trust_remote_code": recipe.config.trust_remote_code}
    try:
        model_exists(value_model, **settings)
        tokenizers: list[Any] = [load_tokenizer(str(name), **settings) for name in (value_model, policy)]
    except UserError as error:
        message = str(error).removeprefix("model_name_or_path: ")
        raise recipe.error("value_model_name_or_path", message) from error
    if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        raise recipe.error(
            "value_model_name_or_path",
            f"{value_model} has another vocabulary than {policy}, whose tokens it is to read; name one with the same.",
        )


def build(inputs: StageInputs) -> Trainer:
    if inputs.config.value_model_name_or_path is not None:
        inputs.config.value_model_name_or_path = resolve_model(inputs.config.value_model_name_or_path)
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

"""The stage `ppo`: recipes that train with PPOTrainer."""

from transformers import Trainer
from trl import get_peft_config, get_quantization_config

from hpt_trl.errors import UserError
from hpt_trl.models import model_exists
from hpt_trl.ppo.config import PPOConfig
from hpt_trl.ppo.trainer import PPOTrainer
from hpt_trl.ranges import at_least
from hpt_trl.recipes import Recipe
from hpt_trl.stages import Stage, StageInputs


def check(recipe: Recipe) -> None:
    """Find a missing value model before anything is loaded."""
    value_model = recipe.config.value_model_name_or_path
    if value_model is None:
        return
    try:
        model_exists(value_model, trust_remote_code=recipe.config.trust_remote_code)
    except UserError as error:
        message = str(error).removeprefix("model_name_or_path: ")
        raise recipe.error("value_model_name_or_path", message) from error


def build(inputs: StageInputs) -> Trainer:
    return PPOTrainer(
        model=inputs.model,
        reward_funcs=inputs.rewards,
        args=inputs.config,
        train_dataset=inputs.splits.train,
        eval_dataset=inputs.eval_rows,
        processing_class=inputs.tokenizer,
        callbacks=inputs.callbacks,
        peft_config=get_peft_config(inputs.model_args),
        quantization_config=get_quantization_config(inputs.model_args),
    )


STAGE = Stage(
    name="ppo",
    config_class=PPOConfig,
    build=build,
    check=check,
    rules=(at_least(1, "num_generations"),),
    rewards="required",
    completion_length=lambda config: config.max_completion_length,
)

"""The stage `hpt`: recipes that train with HybridPostTrainer."""

from transformers import Trainer
from trl import get_peft_config, get_quantization_config

from hpt_trl.hybrid.config import HybridPostConfig
from hpt_trl.hybrid.routing import refuse_what_cannot_work
from hpt_trl.hybrid.trainer import HybridPostTrainer
from hpt_trl.recipes import Recipe
from hpt_trl.stages import Stage, StageInputs


def check(recipe: Recipe) -> None:
    """Refuse settings that the trainer would refuse, before anything is loaded."""
    try:
        refuse_what_cannot_work(recipe.config, {})
    except ValueError as error:
        raise recipe.place(error) from None


def build(inputs: StageInputs) -> Trainer:
    return HybridPostTrainer(
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
    name="hpt",
    config_class=HybridPostConfig,
    build=build,
    check=check,
    needs_demonstration=lambda config: config.uses_demonstrations and config.on_missing_demonstration == "error",
    demonstration_column=lambda config: config.demonstration_column,
    rewards="required",
    completion_length=lambda config: config.max_completion_length,
    success_threshold=lambda config: config.success_threshold,
)

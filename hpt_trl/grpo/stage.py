"""The stage `grpo`: recipes that train with TRL's GRPOTrainer, its faults mended (see `hpt_trl.rollouts.trainer`)."""

from transformers import Trainer
from trl import GRPOConfig, get_peft_config, get_quantization_config

from hpt_trl.rollouts.trainer import RolloutTrainer
from hpt_trl.stages import Stage, StageInputs


def build(inputs: StageInputs) -> Trainer:
    return RolloutTrainer(
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
    name="grpo",
    config_class=GRPOConfig,
    build=build,
    rewards="required",
    completion_length=lambda config: config.max_completion_length,
)

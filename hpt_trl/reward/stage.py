"""The stage `reward`: recipes that train a reward model on comparisons with TRL's own RewardTrainer."""

from dataclasses import replace
from typing import cast

from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer
from trl import RewardConfig, RewardTrainer, get_peft_config, get_quantization_config

from hpt_trl.data import columns_for
from hpt_trl.stages import Stage, StageInputs

# What RewardTrainer reads of a row; `margin` is how much better the chosen completion is.
COLUMNS = ("prompt", "chosen", "rejected", "margin", "tools", "chat_template_kwargs")


def build(inputs: StageInputs) -> Trainer:
    # For this task PEFT trains and saves the score head beside the adapter; for any other it stays as it was drawn.
    model_args = replace(inputs.model_args, lora_task_type="SEQ_CLS")
    trainer = RewardTrainer(
        model=inputs.model,
        args=inputs.config,
        train_dataset=columns_for(inputs.splits.train, *COLUMNS),
        eval_dataset=columns_for(inputs.splits.test, *COLUMNS),
        processing_class=cast(PreTrainedTokenizerBase, inputs.tokenizer),
        callbacks=inputs.callbacks,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )
    _restore_head_type(trainer)
    return trainer


def _restore_head_type(trainer: RewardTrainer) -> None:
    """Undo TRL's cast of all that is trained to bfloat16 (over a quantized base) for the score head.

    PEFT casts what enters an adapter to the adapter's type, but not what enters the head: without autocast a base that
    computes in another type would fail there.
    """
    model = cast(nn.Module, trainer.model)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.modules_to_save.to(next(module.original_module.parameters()).dtype)


STAGE = Stage(
    name="reward",
    config_class=RewardConfig,
    build=build,
    layout="comparisons",
    measures_held_out=True,
)

"""The stage `reward`: recipes that train a reward model on comparisons with TRL's own RewardTrainer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import Trainer
from trl import RewardTrainer

from hpt_trl.files import valid_json, write_atomically
from hpt_trl.methods.comparisons import comparison_rows
from hpt_trl.methods.padding_free import PaddingFreeRewardConfig
from hpt_trl.methods.reward.shift import SCORES_FILE
from hpt_trl.methods.reward.trainer import ScoringRewardTrainer
from hpt_trl.methods.text_models import refuse_processor
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.settings.ranges import at_least

# What RewardTrainer reads of a row; `margin` is how much better the chosen completion is.
COLUMNS = ("prompt", "chosen", "rejected", "margin", "tools", "chat_template_kwargs")


def check(recipe: Recipe) -> None:
    """Refuse what would part the scores of the held-out rows from their prompts."""
    if recipe.config.train_sampling_strategy == "group_by_length":
        raise recipe.error(
            "train_sampling_strategy",
            "group_by_length also sorts the held-out rows, whose scores are kept in their order; drop the key.",
        )


def build(inputs: StageInputs) -> Trainer:
    # For this task PEFT trains and saves the score head beside the adapter; for any other it stays as it was drawn.
    inputs = replace(inputs, model_args=replace(inputs.model_args, lora_task_type="SEQ_CLS"))
    trainer = ScoringRewardTrainer(**inputs.trainer_arguments() | comparison_rows(inputs, *COLUMNS))
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


def finish(trainer: Trainer) -> None:
    """Leave the scores of the held-out comparisons, from which `hpt-trl report` measures the reward shift."""
    if trainer.eval_dataset is None or not trainer.is_world_process_zero():
        return
    rows = cast(ScoringRewardTrainer, trainer).scored_rows()
    text = "".join(json.dumps(valid_json(row), ensure_ascii=False) + "\n" for row in rows)
    write_atomically(Path(str(trainer.args.output_dir)) / SCORES_FILE, text)


STAGE = Stage(
    name="reward",
    config_class=PaddingFreeRewardConfig,
    build=build,
    check=check,
    check_tokenizer=refuse_processor,
    finish=finish,
    rules=(at_least(0, "center_rewards_coefficient"),),
    layouts=("comparisons",),
    measures_held_out=True,
    scores=True,
)

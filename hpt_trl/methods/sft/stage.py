"""The stage `sft`: recipes that train on demonstrations with TRL's own SFTTrainer."""

from dataclasses import dataclass

from transformers import Trainer
from trl import SFTConfig

from hpt_trl.methods.sft.rows import check_images, has_images, label_answers, training_splits
from hpt_trl.methods.sft.trainer import MeasuredSFTTrainer
from hpt_trl.methods.sft.turns import TurnArguments, check_turns
from hpt_trl.recipes.arguments import RecipeArguments
from hpt_trl.recipes.recipe import Stage, StageInputs
from hpt_trl.settings.ranges import one_of


@dataclass
class SftArguments(TurnArguments, RecipeArguments):
    """The recipe's keys, and which turns are trained."""


def build(inputs: StageInputs) -> Trainer:
    train, test = training_splits(inputs.splits, inputs.encoder, inputs.config, inputs.arguments)
    trainer = MeasuredSFTTrainer(train_dataset=train, eval_dataset=test, **inputs.trainer_arguments())
    if has_images(inputs.splits.train, inputs.encoder):
        label_answers(trainer, inputs.encoder, inputs.config)
    return trainer


STAGE = Stage(
    name="sft",
    config_class=SFTConfig,
    argument_class=SftArguments,
    check=check_turns,
    check_rows=check_images,
    build=build,
    rules=(one_of("loss_type", "nll", "dft"), one_of("truncation_mode", "keep_start", "keep_end")),
    layout=lambda arguments: "demonstrations",
    needs_demonstration=lambda config: True,
    rewards="optional",
    measures_held_out=True,
)

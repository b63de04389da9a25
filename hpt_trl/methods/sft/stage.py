"""The stage `sft`: recipes that train on demonstrations with TRL's own SFTTrainer."""

from dataclasses import dataclass

from transformers import Trainer

from hpt_trl.data.layouts import Splits
from hpt_trl.data.rendering import Encoder
from hpt_trl.environments.arguments import ENVIRONMENT_RULES
from hpt_trl.errors import Collector
from hpt_trl.methods.environments import ActingArguments, check_environment
from hpt_trl.methods.padding_free import PaddingFreeSFTConfig
from hpt_trl.methods.sft.acted import build_acted, check_acted
from hpt_trl.methods.sft.rows import label_answers, refuse_turns_of_documents, training_splits, try_row
from hpt_trl.methods.sft.streamed import streamed_training
from hpt_trl.methods.sft.trainer import MeasuredSFTTrainer
from hpt_trl.methods.sft.turns import TurnArguments, check_turns
from hpt_trl.methods.streamed import refuse_streamed_images
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.settings.ranges import one_of


@dataclass
class SftArguments(TurnArguments, ActingArguments):
    """The recipe's keys, what the model acts in, and which turns are trained."""


def check(recipe: Recipe) -> None:
    """Refuse keys that contradict each other, and an environment that cannot be used."""
    mistakes = Collector()
    for part in (check_turns, check_environment, check_acted):
        with mistakes.noted():
            part(recipe)
    mistakes.settle()


def check_rows(recipe: Recipe, splits: Splits, encoder: Encoder, positions: int | None) -> None:
    """Refuse a loss on turns where there are none, and a stream of images."""
    refuse_turns_of_documents(recipe, splits)
    refuse_streamed_images(recipe, splits, encoder)


def build(inputs: StageInputs) -> Trainer:
    if inputs.acting is not None:
        return build_acted(inputs)
    train, test = training_splits(inputs.splits, inputs.encoder, inputs.config, inputs.arguments)
    taken = inputs.trainer_arguments() | {"train_dataset": train, "eval_dataset": test}
    if inputs.splits.stream is not None:
        taken |= streamed_training(inputs)
    trainer = MeasuredSFTTrainer(**taken)
    if inputs.encoder.reads_images(inputs.splits.train.column_names):
        label_answers(trainer, inputs.encoder, inputs.config)
    return trainer


STAGE = Stage(
    name="sft",
    config_class=PaddingFreeSFTConfig,
    argument_class=SftArguments,
    environment=lambda arguments: arguments.environment,
    check=check,
    check_rows=check_rows,
    try_row=try_row,
    build=build,
    rules=(
        one_of("loss_type", "nll", "dft"),
        one_of("truncation_mode", "keep_start", "keep_end"),
        *ENVIRONMENT_RULES,
    ),
    layouts=("demonstrations", "documents"),
    needs_demonstration=lambda config: True,
    rewards="optional",
    measures_held_out=True,
)

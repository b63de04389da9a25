"""The stage `sft`: recipes that train on demonstrations with TRL's own SFTTrainer."""

from transformers import Trainer
from trl import SFTConfig

from hpt_trl.data.loading import columns_for
from hpt_trl.methods.sft.trainer import MeasuredSFTTrainer
from hpt_trl.recipes.stages import Stage, StageInputs
from hpt_trl.settings.ranges import one_of

# What SFTTrainer reads of a row. A column `text` beside them would get the end-of-sequence token in their stead.
COLUMNS = ("prompt", "completion", "tools", "chat_template_kwargs", "image", "images")


def build(inputs: StageInputs) -> Trainer:
    return MeasuredSFTTrainer(
        train_dataset=columns_for(inputs.splits.train, *COLUMNS),
        eval_dataset=columns_for(inputs.splits.test, *COLUMNS),
        **inputs.trainer_arguments(),
    )


STAGE = Stage(
    name="sft",
    config_class=SFTConfig,
    build=build,
    rules=(one_of("loss_type", "nll", "dft"), one_of("truncation_mode", "keep_start", "keep_end")),
    layout=lambda arguments: "demonstrations",
    needs_demonstration=lambda config: True,
    rewards="optional",
    measures_held_out=True,
)

"""The stage `ref_tuning`: recipes that fine-tune a reference model on solutions with TRL's own SFTTrainer."""

from pathlib import Path

from transformers import Trainer

from hpt_trl.data.solutions import SAMPLING_RULES
from hpt_trl.errors import Collector
from hpt_trl.methods.ref_tuning.checkpoints import KeptModels, kept
from hpt_trl.methods.ref_tuning.config import RefTuningArguments, RefTuningConfig
from hpt_trl.methods.sft.rows import training_splits
from hpt_trl.methods.sft.trainer import MeasuredSFTTrainer
from hpt_trl.methods.solution_rows import check_sampling, drawn_demonstrations, without_long_ones
from hpt_trl.methods.text_models import refuse_processor
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.settings.ranges import Rule, one_of


def check(recipe: Recipe) -> None:
    """Refuse what cannot work before the data is read.

    Raises:
        UserError: every such setting.
    """
    mistakes, config = Collector(), recipe.config
    with mistakes.noted():
        check_sampling(recipe)
    if config.completion_only_loss is False:
        said = "false: a reference is tuned on the solutions alone; drop the line."
        mistakes.note(recipe.error("completion_only_loss", said))
    if config.load_best_model_at_end:
        said = "true: the best model is kept as `checkpoints/best`, beside the last one; drop the line."
        mistakes.note(recipe.error("load_best_model_at_end", said))
    mistakes.settle()


def build(inputs: StageInputs) -> Trainer:
    train, test = training_splits(inputs.splits, inputs.encoder, inputs.config, inputs.arguments)
    trainer = MeasuredSFTTrainer(train_dataset=train, eval_dataset=test, **inputs.trainer_arguments())
    if inputs.config.checkpoint_fraction is not None:
        trainer.add_callback(KeptModels(trainer, inputs.config.checkpoint_fraction))
    return trainer


def finish(trainer: Trainer) -> None:
    """Say which models were kept beside the last one."""
    said = kept(Path(str(trainer.args.output_dir)), trainer.state)
    if said is not None and trainer.is_world_process_zero():
        print(f"\nCheckpoints in {said}")


STAGE = Stage(
    name="ref_tuning",
    config_class=RefTuningConfig,
    argument_class=RefTuningArguments,
    check=check,
    check_tokenizer=refuse_processor,
    build=build,
    finish=finish,
    rules=(
        *SAMPLING_RULES,
        Rule(("checkpoint_fraction",), "above 0 to below 1, or null", above=0, below=1),
        one_of("loss_type", "nll", "dft"),
        one_of("truncation_mode", "keep_start", "keep_end"),
    ),
    layouts=("solutions",),
    sample=drawn_demonstrations,
    fit=without_long_ones,
    measures_held_out=True,
)

"""A run's trainer: built by its stage, held to what a training needs, and given what every run has."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, set_seed
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from hpt_trl.models.adapters import keep_adapter_type, keep_four_bit_trainable
from hpt_trl.models.trainable import refuse_broken, refuse_untrainable
from hpt_trl.models.whole_models import whole_model
from hpt_trl.recipes.recipe import StageInputs
from hpt_trl.runs.callbacks import EndWhereDone
from hpt_trl.runs.hub import write_no_card
from hpt_trl.runs.interrupting import SaveOnInterrupt
from hpt_trl.runs.model_files import complete_model_files
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.progress import MetricsWriter, ProgressLines
from hpt_trl.runs.replacing import RemoveReplaced
from hpt_trl.runs.resuming import note_of
from hpt_trl.runs.saving import save_whole
from hpt_trl.settings.masking import masked


def build_trainer(
    prepared: Prepared,
    callbacks: Sequence[TrainerCallback],
    first: Sequence[TrainerCallback] = (),
    live: TrainerCallback | None = None,
) -> Trainer:
    """Has the recipe's stage load the model and build its trainer.

    Args:
        callbacks: see the metrics once they are written.
        first: come before all others.
        live: shows the training in place of the progress bar and its lines.

    Raises:
        UserError: the model cannot be loaded, has nothing to train, or weights that are no numbers.
    """
    recipe, config = prepared.recipe, prepared.recipe.config
    if prepared.model is not None:
        config.model_init_kwargs = _loaded_with(prepared)
    # Adapters are drawn before the trainer sets the seed itself.
    set_seed(config.seed)
    assert recipe.stage.build is not None
    # Ahead of the trainer's own progress bar, which starts its clock at the same event. The writer opens its file for
    # what the evaluation before the training logs.
    trainer = recipe.stage.build(
        _inputs(prepared, [*first, MetricsWriter(config.output_dir), *callbacks, EndWhereDone()])
    )
    # The model is loaded; every checkpoint has the arguments in `training_args.bin`.
    config.model_init_kwargs = masked(config.model_init_kwargs)
    refuse_untrainable(trainer.model)
    for model in (trainer.model, recipe.stage.reference(trainer)):
        if model is not None:
            refuse_broken(model, prepared.model or "the model")
    keep_four_bit_trainable(trainer.model)
    keep_adapter_type(trainer.model)
    complete_model_files(trainer, recipe, prepared.model_config)
    write_no_card(trainer)
    save_whole(trainer, note_of(recipe) if trainer.args.should_save else {})
    if live is not None or not config.disable_tqdm:
        _show(trainer, ProgressLines() if live is None else live)
    trainer.add_callback(RemoveReplaced(Path(config.output_dir)))
    trainer.add_callback(SaveOnInterrupt())
    return trainer


def _loaded_with(prepared: Prepared) -> dict[str, object]:
    """What the model is loaded with: the keys of their own names, and above them the recipe's `model_init_kwargs`."""
    config, model_args = prepared.recipe.config, prepared.recipe.model_args
    return {
        "revision": model_args.model_revision,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(config.model_init_kwargs or {}),
    }


def _inputs(prepared: Prepared, callbacks: list[TrainerCallback]) -> StageInputs:
    recipe = prepared.recipe
    return StageInputs(
        model=None if prepared.model is None else whole_model(prepared.model),
        tokenizer=prepared.tokenizer,
        encoder=prepared.encoder,
        config=recipe.config,
        model_args=recipe.model_args,
        arguments=recipe.arguments,
        splits=prepared.splits,
        rewards=prepared.rewards,
        callbacks=callbacks,
        model_config=prepared.model_config,
        acting=prepared.acting,
    )


def _show(trainer: Trainer, display: TrainerCallback) -> None:
    """Puts a display of the training in the place of transformers' own: another one in a notebook, or without bars."""
    for stock in (DEFAULT_PROGRESS_CALLBACK, ProgressCallback, PrinterCallback):
        trainer.remove_callback(stock)
    trainer.add_callback(display)

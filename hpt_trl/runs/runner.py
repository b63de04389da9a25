"""One run of a recipe: checks, evaluation, training, evaluation, and the files that stay.

The evaluation before training takes place inside `Trainer.train`, once the trainer has put the model where it trains
(device, DDP, FSDP, DeepSpeed): the same code then serves one process and many.
"""

import math
import os
import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, set_seed
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from hpt_trl.data.unused import describe_unused
from hpt_trl.digests import DIGESTS_FILE, digest_of
from hpt_trl.models.adapters import keep_adapter_type, keep_four_bit_trainable
from hpt_trl.models.loading import whole_model
from hpt_trl.models.safe_loading import deepspeed_loads_weights_only
from hpt_trl.models.trainable import refuse_broken, refuse_untrainable
from hpt_trl.models.whole_files import DIGESTS_KEY
from hpt_trl.progress import lines_above_bars
from hpt_trl.reading import write_results
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.profiles import LAUNCH_OPTIONS
from hpt_trl.recipes.recipe import StageInputs
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.rollouts.vllm import open_engine
from hpt_trl.runs.acting import rows_placed
from hpt_trl.runs.attempts import Attempts
from hpt_trl.runs.before_after import Evaluations
from hpt_trl.runs.best import load_best
from hpt_trl.runs.callbacks import AtTrainBegin, EndWhereDone, KnowsBest, NothingLeft, close_bars
from hpt_trl.runs.checkpoints import full_disk_explained
from hpt_trl.runs.closing import draw_and_close
from hpt_trl.runs.collecting import collect_as_usual
from hpt_trl.runs.early import check_run
from hpt_trl.runs.evaluating import run_evaluation
from hpt_trl.runs.health import Health, refuse_untrained
from hpt_trl.runs.hub import finish_on_hub, write_no_card, write_run_card
from hpt_trl.runs.interrupting import SaveOnInterrupt, holding_interrupts, interrupts_explained
from hpt_trl.runs.locking import only_run
from hpt_trl.runs.model_files import complete_model_files
from hpt_trl.runs.output_folder import check_output_folder, open_output_folder, run_files
from hpt_trl.runs.preparation import prepare_recipe
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.progress import MetricsWriter, ProgressLines, without_library_bars
from hpt_trl.runs.quiet import quiet, say
from hpt_trl.runs.record import hardware, short_name, versions
from hpt_trl.runs.replacing import RemoveReplaced, put_back_on_failure
from hpt_trl.runs.resuming import note_of, settle_checkpoint
from hpt_trl.runs.saving import save_final, save_whole
from hpt_trl.runs.totals import RunTotals
from hpt_trl.runs.trackers.tracking import Tracking
from hpt_trl.runs.warned import Warnings
from hpt_trl.runs.working import run_work
from hpt_trl.settings.masking import masked, masked_command
from hpt_trl.settings.secrets import take_token


def run(name: str, overrides: list[str], live: TrainerCallback | None = None) -> None:
    """Runs a recipe: `hpt-trl run NAME [--key value ...]`.

    Args:
        name: Path of a recipe, or the name of a bundled one.
        overrides: Words of the command line.
        live: Shows a training in place of the progress bar, its lines and what is printed at the end.

    Raises:
        UserError: a mistake in the recipe, its data, model or rewards; before the training nothing is written.
    """
    started = time.perf_counter()
    with quiet(), lines_above_bars():
        check_run(name, overrides, live=True)
        recipe = read_recipe(find_recipe(name), overrides)
        command = ["hpt-trl", "run", name, *take_token(overrides), *shlex.split(os.environ.get(LAUNCH_OPTIONS, ""))]
        folder = recipe.config.output_dir
        if recipe.stage.work is not None:
            with interrupts_explained(folder, command):
                run_work(recipe, started, command)
            return
        if live is None:
            say("Checking rows, rewards and tokenizer")
        prepared = prepare_recipe(recipe)
        collect_as_usual()
        if not prepared.recipe.stage.trains:
            with interrupts_explained(folder, command, goes_on=True):
                run_evaluation(prepared, started, command)
            return
        state = PartialState()
        if state.is_main_process:
            open_engine(prepared.recipe)
        # Every process has looked at the folder before the first one writes to it.
        state.wait_for_everyone()
        explained = (full_disk_explained(folder), interrupts_explained(folder, command))
        with explained[0], explained[1], ExitStack() as held:
            if state.is_main_process:
                held.enter_context(only_run(Path(folder), command))
                # Another run may have written there in the meantime.
                check_output_folder(prepared.recipe)
            if prepared.checkpoint is not None:
                prepared.checkpoint = _settled(prepared, prepared.checkpoint)
            if state.is_main_process:
                if prepared.checkpoint is None:
                    held.enter_context(put_back_on_failure(Path(folder), run_files))
                open_output_folder(prepared.recipe, resuming=prepared.checkpoint is not None)
                if prepared.unused:
                    print(f"Columns that nothing reads: {describe_unused(prepared.unused)}", flush=True)
            state.wait_for_everyone()
            with rows_placed(prepared.splits):
                tracking = Tracking(prepared.recipe, prepared)
                with tracking.running():
                    _train(prepared, started, command, tracking, live)


def _settled(prepared: Prepared, checkpoint: Path) -> Path:
    """Where the run goes on, as the first process finds it."""
    found: list[Path] = [checkpoint]
    if PartialState().is_main_process:
        found = [settle_checkpoint(prepared.recipe, checkpoint, prepared.model_config)]
    return broadcast_object_list(found)[0]


def _train(
    prepared: Prepared, started: float, command: list[str], tracking: Tracking, live: TrainerCallback | None
) -> None:
    if live is None:
        say("Loading the model" if prepared.model else "Making the model")
    totals, health = RunTotals(started), Health()
    attempts = Attempts(prepared.recipe, prepared.checkpoint, totals)
    warnings = Warnings(prepared.recipe, tracking.warn)
    evaluations = Evaluations(prepared, totals)
    # Who ends a training comes before those who note what a checkpoint has. The totals come before all that logs and
    # evaluates, the health before the evaluation that costs minutes.
    trainer = _build_trainer(
        prepared,
        [AtTrainBegin(evaluations.before_training)],
        [KnowsBest(prepared.checkpoint), warnings, totals, attempts, health, *tracking.callbacks],
        live,
    )
    health.watch(trainer)
    tracking.watch(trainer)
    warnings.watch(trainer)
    evaluations.trainer = trainer
    totals.training_begins(trainer)
    try:
        safely = deepspeed_loads_weights_only() if trainer.is_deepspeed_enabled else nullcontext()
        with without_library_bars(), safely:
            try:
                trainer.train(resume_from_checkpoint=None if prepared.checkpoint is None else str(prepared.checkpoint))
            except NothingLeft:
                load_best(trainer)
    except KeyboardInterrupt:
        close_bars(trainer)
        raise
    except RuntimeError as error:
        if (explained := health.explained(error)) is None:
            raise
        raise explained from error
    totals.training_ends()
    warnings.refuse_ended()
    health.check_weights()
    # Saved before it is evaluated: whatever fails there, the model stays.
    with holding_interrupts():
        save_final(trainer)
    after = evaluations.evaluate("After training")
    loss = (after or {}).get("held_out", {}).get("loss", 0.0)
    if not math.isfinite(loss):
        raise health.diverged(f"after step {trainer.state.global_step} the held-out loss is {loss}")
    found = prepared.recipe.stage.finish(trainer)
    why = health.why_untrained()
    if trainer.is_world_process_zero():
        more = {"warnings": warnings.kept, "attempts": attempts.all()}
        results = _finish(prepared, trainer, evaluations, after, totals, why, command, found, more)
        tracking.trained(results)
        draw_and_close(Path(prepared.recipe.config.output_dir), results, printed=live is None)
    # As Trainer.end does, which transformers 5.17 lacks.
    trainer.accelerator.end_training()
    refuse_untrained(why, trainer)
    finish_on_hub(prepared.recipe, trainer)
    warnings.refuse_seen()


def _build_trainer(
    prepared: Prepared,
    callbacks: list[TrainerCallback],
    first: Sequence[TrainerCallback] = (),
    live: TrainerCallback | None = None,
) -> Trainer:
    recipe = prepared.recipe
    config, model_args = recipe.config, recipe.model_args
    if prepared.model is not None:
        config.model_init_kwargs = {
            "revision": model_args.model_revision,
            "trust_remote_code": config.trust_remote_code,
            "attn_implementation": model_args.attn_implementation,
            "dtype": model_args.dtype,
            **(config.model_init_kwargs or {}),
        }
    # Adapters are drawn before the trainer sets the seed itself.
    set_seed(config.seed)
    assert recipe.stage.build is not None
    trainer = recipe.stage.build(
        StageInputs(
            model=None if prepared.model is None else whole_model(prepared.model),
            tokenizer=prepared.tokenizer,
            encoder=prepared.encoder,
            config=config,
            model_args=model_args,
            arguments=recipe.arguments,
            splits=prepared.splits,
            rewards=prepared.rewards,
            # Ahead of the trainer's own progress bar, which starts its clock at the same event. The writer opens
            # its file for what the evaluation before the training logs.
            callbacks=[*first, MetricsWriter(config.output_dir), *callbacks, EndWhereDone()],
            model_config=prepared.model_config,
            acting=prepared.acting,
        )
    )
    # The model is loaded; every checkpoint has the arguments in `training_args.bin`.
    config.model_init_kwargs = masked(config.model_init_kwargs)
    refuse_untrainable(trainer.model)
    for model in (trainer.model, getattr(trainer, "ref_model", None)):
        if model is not None:
            refuse_broken(model, prepared.model or "the model")
    keep_four_bit_trainable(trainer.model)
    keep_adapter_type(trainer.model)
    complete_model_files(trainer, recipe, prepared.model_config)
    write_no_card(trainer)
    save_whole(trainer, note_of(recipe) if trainer.args.should_save else {})
    if live is not None or not config.disable_tqdm:
        # Another one in a notebook, and with `disable_tqdm`.
        for stock in (DEFAULT_PROGRESS_CALLBACK, ProgressCallback, PrinterCallback):
            trainer.remove_callback(stock)
        trainer.add_callback(ProgressLines() if live is None else live)
    trainer.add_callback(RemoveReplaced(Path(config.output_dir)))
    trainer.add_callback(SaveOnInterrupt())
    return trainer


def _finish(
    prepared: Prepared,
    trainer: Trainer,
    evaluations: Evaluations,
    after: dict[str, Any] | None,
    totals: RunTotals,
    why_untrained: str | None,
    command: list[str],
    found: dict[str, Any] | None,
    more: dict[str, Any],
) -> dict[str, Any]:
    """Writes results.json and the card.

    Args:
        found: results of the stage's own.
        more: what the run was warned of, and its attempts.

    Returns:
        What results.json says.
    """
    recipe, before, spent = prepared.recipe, evaluations.before, totals.now()
    folder = Path(recipe.config.output_dir)
    wall = {"total": spent.seconds, "train": spent.training_seconds, "evaluation": spent.evaluation_seconds}
    results = {
        "recipe": short_name(recipe.path),
        "stage": recipe.stage.name,
        "model": prepared.model or f"a new {prepared.model_config.model_type}",
        "before": before,
        "after": after,
        **({} if found is None else {recipe.stage.name: found}),
        "rows": {
            "training": prepared.splits.rows,
            "held_out": 0 if prepared.splits.test is None else len(prepared.splits.test),
        },
        "faulty_rows": {"training": prepared.splits.left_out, "held_out": prepared.splits.test_dropped},
        "overlap": _overlap(prepared),
        "steps": trainer.state.global_step,
        "trained": why_untrained is None,
        **({} if why_untrained is None else {"why_untrained": why_untrained}),
        "train_loss": totals.train_loss(),
        **more,
        "wall_time_s": wall,
        "tokens": {
            "training": spent.tokens,
            "evaluation": sum(_tokens(evaluation) for evaluation in (before, after)),
        },
        "versions": versions(),
        "hardware": hardware(trainer.accelerator.device, trainer.accelerator.num_processes, spent.peak_bytes),
        "command": masked_command(shlex.join(command)),
        DIGESTS_KEY: digest_of(folder / DIGESTS_FILE),
    }
    write_results(folder, results)
    write_run_card(recipe)
    return results


def _tokens(evaluation: dict[str, Any] | None) -> int:
    """Tokens that were read and generated by an evaluation of a run, and by those that its recipe names."""
    found = evaluation or {}
    return found.get("tokens", 0) + sum(named.get("tokens", 0) for named in found.get("evaluations", {}).values())


def _overlap(prepared: Prepared) -> dict[str, float] | None:
    """Held-out rows that were trained on as well; None without held-out rows."""
    overlap = prepared.overlap
    return None if overlap is None else {"rows": overlap.rows, "of": overlap.total, "share": overlap.share}

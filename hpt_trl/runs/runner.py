"""One run of a recipe: checks, evaluation, training, evaluation, and the files that stay.

The evaluation before training takes place inside `Trainer.train`, once the trainer has put the model where it trains
(device, DDP, FSDP, DeepSpeed): the same code then serves one process and many.
"""

import os
import shlex
import time
from contextlib import ExitStack
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from hpt_trl.data.unused import describe_unused
from hpt_trl.progress import lines_above_bars
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.profiles import LAUNCH_OPTIONS
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.rollouts.vllm import open_engine
from hpt_trl.runs.acting import rows_placed
from hpt_trl.runs.checkpoints import full_disk_explained
from hpt_trl.runs.collecting import collect_as_usual
from hpt_trl.runs.early import check_run
from hpt_trl.runs.evaluating import run_evaluation
from hpt_trl.runs.freed_memory import keep_freed_memory
from hpt_trl.runs.interrupting import interrupts_explained
from hpt_trl.runs.kept_records import take_up_records
from hpt_trl.runs.locking import only_run
from hpt_trl.runs.output_folder import check_output_folder, open_output_folder, run_files
from hpt_trl.runs.preparation import prepare_recipe
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.quiet import quiet, say
from hpt_trl.runs.replacing import put_back_on_failure
from hpt_trl.runs.resuming import settle_checkpoint
from hpt_trl.runs.trackers.tracking import Tracking
from hpt_trl.runs.training import Training
from hpt_trl.runs.working import run_work
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
        if recipe.config.device.type == "cpu":
            keep_freed_memory()
        if not prepared.recipe.stage.trains:
            with interrupts_explained(folder, command, goes_on=True):
                run_evaluation(prepared, started, command)
            return
        _run_training(prepared, started, command, live)


def _run_training(prepared: Prepared, started: float, command: list[str], live: TrainerCallback | None) -> None:
    """Takes the output folder for this run alone, and trains in it."""
    state, folder = PartialState(), prepared.recipe.config.output_dir
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
            if prepared.checkpoint is not None:
                take_up_records(prepared.checkpoint, Path(folder))
            if prepared.unused:
                print(f"Columns that nothing reads: {describe_unused(prepared.unused)}", flush=True)
        state.wait_for_everyone()
        with rows_placed(prepared.splits):
            tracking = Tracking(prepared.recipe, prepared)
            with tracking.running():
                Training(prepared, started, command, tracking, live).run()


def _settled(prepared: Prepared, checkpoint: Path) -> Path:
    """Where the run goes on, as the first process finds it."""
    found: list[Path] = [checkpoint]
    if PartialState().is_main_process:
        found = [settle_checkpoint(prepared.recipe, checkpoint, prepared.model_config)]
    return broadcast_object_list(found)[0]

"""A run of a stage that has neither model nor rows: what it leaves is checked for, made and noted."""

import shlex
import time
from pathlib import Path

from accelerate import PartialState

from hpt_trl.errors import Collector
from hpt_trl.evaluation.lines import measure_lines
from hpt_trl.reading import duration, write_results
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.run_files import RESULTS_FILE
from hpt_trl.runs.checkpoints import full_disk_explained
from hpt_trl.runs.locking import only_run
from hpt_trl.runs.output_folder import check_output_folder, write_recipe
from hpt_trl.runs.record import hardware, short_name, versions
from hpt_trl.runs.trackers.choosing import settle_trackers
from hpt_trl.runs.trackers.tracking import Tracking
from hpt_trl.settings.masking import masked_command
from hpt_trl.terminal import flow


def check_work(recipe: Recipe, *, planned: bool = False) -> None:
    """Checks what can be checked before anything is made.

    Args:
        planned: nothing is to be made now: the output folder may hold a run.

    Raises:
        UserError: the mistakes found, in the recipe or the output folder.
    """
    mistakes = Collector()
    for check in (recipe.stage.check, settle_trackers):
        with mistakes.noted():
            check(recipe)
    with mistakes.noted():
        check_output_folder(recipe, planned=planned)
    mistakes.settle()


def run_work(recipe: Recipe, started: float, command: list[str]) -> None:
    """Does the stage's work in the first process; the others wait for it.

    What a former run left stays until the work replaces it, but for its results: without them it is not finished.

    Raises:
        UserError: the recipe, the output folder or what is worked on is refused.
    """
    check_work(recipe)
    work = recipe.stage.work
    assert work is not None
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        folder = Path(recipe.config.output_dir)
        with full_disk_explained(recipe.config.output_dir), only_run(folder, command):
            check_output_folder(recipe)
            (folder / RESULTS_FILE).unlink(missing_ok=True)
            write_recipe(recipe)
            measures = work(recipe)
            seconds = time.perf_counter() - started
            results = {
                "recipe": short_name(recipe.path),
                "stage": recipe.stage.name,
                "measures": measures,
                "wall_time_s": {"total": seconds},
                "versions": versions(),
                "hardware": hardware(state.device, state.num_processes, None),
                "command": masked_command(shlex.join(command)),
            }
            write_results(folder, results)
            tracking = Tracking(recipe)
            with tracking.running():
                tracking.measured(results, [])
        print(flow([*measure_lines(measures), f"Done in {duration(seconds)}", f"Results: {folder / RESULTS_FILE}"]))
    state.wait_for_everyone()

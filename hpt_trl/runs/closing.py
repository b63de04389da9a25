"""The end of a training: its pictures and pages are drawn, and what came out is printed, all from what it left."""

from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.reading import duration
from hpt_trl.run_files import RESULTS_FILE, WARNINGS_FILE
from hpt_trl.runs.next_commands import next_commands
from hpt_trl.runs.reporting import draw_curves, evaluation_lines, report_stage, side_by_side
from hpt_trl.terminal import flow


def draw_and_close(folder: Path, results: dict[str, Any], *, printed: bool) -> None:
    """Draws the curves and the stage's pages of a finished training, and prints its closing lines.

    Args:
        folder: The run's output folder.
        results: As results.json has them.
        printed: False where something else shows the run.
    """
    try:
        curves = str(draw_curves(folder))
    except UserError as error:  # of fewer steps than `logging_steps`
        curves = f"none, {error}"
    of_stage = report_stage(folder)
    if not printed:
        return
    before, after, wall = results["before"], results["after"], results["wall_time_s"]
    print()
    if before and after and "completions" in before and "completions" in after:
        print(side_by_side(before, after) + "\n")
    for text in [flow(evaluation_lines(before, after)), *of_stage]:
        print(text)
    lines = [
        *[
            f"Warned at step {line['step']} of {line['kind']}: see {folder / WARNINGS_FILE}"
            for line in results["warnings"]
        ],
        f"{results['steps']} steps in {duration(wall['total'])} (training {duration(wall['train'])}, evaluation "
        f"{duration(wall['evaluation'])})",
        f"Model:   {folder}",
        f"Results: {folder / RESULTS_FILE}",
        f"Curves:  {curves}",
    ]
    print(flow([*lines, *next_commands(folder, results["stage"])]))

"""Names of the files that a run leaves in its output folder, for whoever looks there without loading a library."""

from pathlib import Path

from hpt_trl.errors import UserError

RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"
CURVES_FILE = "curves.png"
# The evaluation before the training, until the results have it.
BEFORE_FILE = "before.json"
# Completions of the evaluations that a training names, before and after it.
EVALUATIONS = "evaluations"


def check_started(output_dir: str | Path) -> None:
    """Checks that a run has begun to leave something.

    Raises:
        UserError: it has not, or the folder is another one.
    """
    path = Path(output_dir) / METRICS_FILE
    if not path.exists():
        raise UserError(f"{path} does not exist: `{output_dir}` is not the output folder of a run that has started.")

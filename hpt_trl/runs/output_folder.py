"""The output folder of a run: what may be written there, what is cleared away, and the recipe that is kept there."""

import json
import os
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from hpt_trl.digests import DIGESTS_FILE
from hpt_trl.environments.trajectories import FOLDER as TRAJECTORIES
from hpt_trl.evaluation.samples import CONDITIONS_FILE, PARTS, SAMPLES_FILE, SCORED_FILE
from hpt_trl.files import PARTIAL, write_atomically
from hpt_trl.hub.origin import PUSHED_FILE
from hpt_trl.methods.critic.results import CURVES_FILE as CURVES_OF_VALUES
from hpt_trl.methods.critic.results import PICTURE_FILE as PICTURE_OF_VALUES
from hpt_trl.methods.reward.shift import PICTURE_FILE, SCORES_FILE
from hpt_trl.methods.rho1.page import PAGE_FILE, SELECTIONS_FILE
from hpt_trl.models.folders import HEADS_FOLDER
from hpt_trl.reading import read_results
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.run_files import (
    ABANDONED,
    BEFORE_FILE,
    CURVES_FILE,
    DAMAGED,
    EVALUATIONS,
    MARK,
    METRICS_FILE,
    RECIPE_FILE,
    REMOVING,
    REPORT_FILE,
    RESULTS_FILE,
    SAVING,
    TENSORBOARD,
    TRACKERS_FILE,
    WARNINGS_FILE,
)
from hpt_trl.runs.changes import STARTING_KEYS
from hpt_trl.runs.replacing import put_back_half, set_aside
from hpt_trl.runs.resuming import move_aside, refuse_later, refuse_other_run, refuse_unpickled
from hpt_trl.runs.starting import Occupied, Start, check_start
from hpt_trl.settings.environment import environment_of
from hpt_trl.settings.masking import is_secret_variable, masked
from hpt_trl.token_scores.weights_page import PAGE_FILE as WEIGHTS_PAGE
from hpt_trl.token_scores.weights_page import SAMPLES_FILE as WEIGHTS_FILE

# Everything that a run, TRL and `save_pretrained` write; `overwrite` removes these and nothing else.
_RUN_FILES = (
    *(DIGESTS_FILE, RECIPE_FILE, BEFORE_FILE, METRICS_FILE, RESULTS_FILE, CURVES_FILE, REPORT_FILE),
    *(SCORES_FILE, PICTURE_FILE),
    *(SELECTIONS_FILE, PAGE_FILE, CONDITIONS_FILE, SAMPLES_FILE, PARTS, SCORED_FILE, EVALUATIONS),
    *(WEIGHTS_FILE, WEIGHTS_PAGE, CURVES_OF_VALUES, PICTURE_OF_VALUES, TRAJECTORIES),
    *("*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "training_args.bin"),
    *("adapter_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "*.jinja"),
    *("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model", "*processor_config.json", "README.md"),
    *("checkpoint-*", "checkpoints", "completions", TENSORBOARD, "value_head", HEADS_FOLDER),
    *(DAMAGED, ABANDONED),
    *(TRACKERS_FILE, WARNINGS_FILE, PUSHED_FILE),
)


def resolved_recipe(recipe: Recipe) -> str:
    """The recipe with its overrides as YAML; it can be run again with another `output_dir`.

    A secret in it is the user's to set anew: `hpt_trl.recipes.withheld` refuses what stands in its place.
    """
    values = masked({key: value for key, value in recipe.raw.items() if key not in STARTING_KEYS[:2]})
    variables = recipe.sources.file.values.get("env") or {}
    told = {name: value for name, value in variables.items() if not is_secret_variable(str(name))}
    told = {name: value for name, value in told.items() if masked(value) == value}
    values |= environment_of(values, told, [*recipe.sources.module_folders, os.getcwd()])
    return f"{MARK}\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def check_output_folder(recipe: Recipe, *, planned: bool = False) -> Path | None:
    """Checks that a run may write to its `output_dir`; see `hpt_trl.runs.starting`.

    Args:
        planned: no run is to start now: one that lies there already is no mistake (see `occupied`).

    Returns:
        The checkpoint to resume from, None for a new run.

    Raises:
        UserError: the folder holds something else, or there is nothing to resume from, or what there is is of
            another recipe, or lies behind this one's end.
    """
    try:
        checkpoint = check_start(_start_of(recipe))
    except Occupied:
        if not planned:
            raise
        return None
    if checkpoint is not None:
        refuse_unpickled(recipe, checkpoint)
        refuse_other_run(recipe, checkpoint)
        refuse_later(recipe, checkpoint)
    return checkpoint


def occupied(recipe: Recipe) -> str | None:
    """Says what run lies in a recipe's output folder and would be written over; None where none does."""
    try:
        check_start(_start_of(recipe))
    except Occupied as error:
        return error.said
    return None


def open_output_folder(recipe: Recipe, *, resuming: bool) -> Path:
    """Makes the folder ready for a run that `check_output_folder` let pass: creates or clears it, writes the recipe.

    A former run's files are set aside; see `hpt_trl.runs.replacing`.
    """
    folder = Path(recipe.config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    clear_unfinished(folder)
    put_back_half(folder)
    if not resuming:
        set_aside(folder, run_files)
    elif (folder / RESULTS_FILE).exists():
        _take_up_finished(folder)
    write_recipe(recipe)
    return folder


def _take_up_finished(folder: Path) -> None:
    """Makes a finished run one that is not, since it goes on; what was measured before its training stays known."""
    # A former version removed it at the end; where it is there, it says more.
    if not (folder / BEFORE_FILE).exists():
        before = (read_results(folder) or {}).get("before")
        write_atomically(folder / BEFORE_FILE, json.dumps(before, ensure_ascii=False))
    move_aside(folder / RESULTS_FILE, folder / ABANDONED)


def run_files(folder: Path) -> list[Path]:
    """What of a folder a run of this package, TRL or `save_pretrained` has written, links as they are."""
    # `glob` would leave out a link that leads nowhere.
    return sorted(path for path in folder.iterdir() if any(fnmatchcase(path.name, pattern) for pattern in _RUN_FILES))


def clear_unfinished(folder: Path) -> None:
    """Removes what a run that was killed was about to write or to remove; the run that holds the folder calls it."""
    for name in (SAVING, REMOVING):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink()


def write_recipe(recipe: Recipe) -> None:
    """Writes the resolved recipe into the run's folder."""
    write_atomically(Path(recipe.config.output_dir) / RECIPE_FILE, resolved_recipe(recipe))


def _start_of(recipe: Recipe) -> Start:
    settings = {
        "output_dir": recipe.config.output_dir,
        "resume_from_checkpoint": recipe.config.resume_from_checkpoint,
        "overwrite": recipe.arguments.overwrite,
    }
    stage = recipe.stage
    return Start(recipe.raw | settings, stage.name, stage.trains, stage.work is not None, recipe.error)

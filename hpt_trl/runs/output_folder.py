"""The output folder of a run: what may be written there, and where a stopped run goes on.

A run never writes over another one, nor into a folder that is not a run's: the user says `overwrite: true`, resumes,
or names another folder.
"""

import shutil
from pathlib import Path

import yaml

from hpt_trl.environments.trajectories import FOLDER as TRAJECTORIES
from hpt_trl.evaluation.samples import CONDITIONS_FILE, PARTS, SAMPLES_FILE, SCORED_FILE
from hpt_trl.files import write_atomically
from hpt_trl.hub.origin import PUSHED_FILE
from hpt_trl.hub.run_folder import MARK
from hpt_trl.methods.critic.results import CURVES_FILE as CURVES_OF_VALUES
from hpt_trl.methods.critic.results import PICTURE_FILE as PICTURE_OF_VALUES
from hpt_trl.methods.reward.shift import PICTURE_FILE, SCORES_FILE
from hpt_trl.methods.rho1.page import PAGE_FILE, SELECTIONS_FILE
from hpt_trl.models.folders import HEADS_FOLDER
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.runs.checkpoints import RECIPE_FILE, complete_checkpoints, is_complete
from hpt_trl.runs.reporting import CURVES_FILE, METRICS_FILE, RESULTS_FILE
from hpt_trl.token_scores.weights_page import PAGE_FILE as WEIGHTS_PAGE
from hpt_trl.token_scores.weights_page import SAMPLES_FILE as WEIGHTS_FILE

BEFORE_FILE = "before.json"
# Completions of the evaluations that a training names, before and after it.
EVALUATIONS = "evaluations"

# Everything that a run, TRL and `save_pretrained` write; `overwrite` removes these and nothing else.
_RUN_FILES = (
    *(RECIPE_FILE, BEFORE_FILE, METRICS_FILE, RESULTS_FILE, CURVES_FILE, SCORES_FILE, PICTURE_FILE),
    *(SELECTIONS_FILE, PAGE_FILE, CONDITIONS_FILE, SAMPLES_FILE, PARTS, SCORED_FILE, EVALUATIONS),
    *(WEIGHTS_FILE, WEIGHTS_PAGE, CURVES_OF_VALUES, PICTURE_OF_VALUES, TRAJECTORIES),
    *("*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "training_args.bin"),
    *("adapter_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "*.jinja"),
    *("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model", "*processor_config.json", "README.md"),
    *("checkpoint-*", "checkpoints", "completions", "runs", "value_head", HEADS_FOLDER, PUSHED_FILE),
)
# Keys that say how a run is started, not what it does.
_STARTING_KEYS = ("overwrite", "resume_from_checkpoint", "output_dir")


def resolved_recipe(recipe: Recipe) -> str:
    """The recipe with its overrides as YAML; it can be run again with another `output_dir`."""
    values = {key: value for key, value in recipe.raw.items() if key not in _STARTING_KEYS[:2]}
    return f"{MARK}\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def check_output_folder(recipe: Recipe) -> Path | None:
    """Whether the run may write to its `output_dir`; nothing is written or removed yet.

    Returns:
        The checkpoint to resume from, None for a new run.

    Raises:
        UserError: the folder is not a run's, or holds a run that would be written over; or there is nothing to
            resume from.
    """
    folder = Path(recipe.config.output_dir)
    if folder.exists() and not folder.is_dir():
        raise recipe.error("output_dir", f"{folder} is a file; name a folder that is new or empty.")
    resume = recipe.config.resume_from_checkpoint
    if resume is not None and str(resume).lower() not in ("false", "no"):
        if recipe.arguments.overwrite:
            raise recipe.error("overwrite", "a run is either resumed or started anew; drop one of the two keys.")
        checkpoint = _checkpoint(recipe, folder, str(resume))
        if checkpoint.resolve().parent == folder.resolve():
            return checkpoint
    else:
        checkpoint = None
    if not folder.exists() or not any(folder.iterdir()):
        return checkpoint
    stored = folder / RECIPE_FILE
    if not stored.is_file() or not stored.read_text(encoding="utf-8").startswith(MARK):
        raise recipe.error(
            "output_dir",
            f"{folder} is not empty and holds no run of hpt-trl, so nothing is written there. Name a folder that is "
            "new or empty.",
        )
    if recipe.arguments.overwrite:
        return None
    if not recipe.stage.trains and recipe.stage.work is None:
        # Whether completions that are there are this recipe's is found out where they are read.
        _refuse_training(recipe, stored)
        return None
    choices = "Name another `--output_dir`, or start anew with `--overwrite true`"
    if (folder / RESULTS_FILE).exists():
        raise recipe.error("output_dir", f"{folder} holds a finished run. {choices}.")
    if checkpoints := complete_checkpoints(folder):
        raise recipe.error(
            "output_dir",
            f"{folder} holds a run that stopped after {checkpoints[-1].name}. Go on with `--resume_from_checkpoint "
            f"true`. {choices}.",
        )
    if _differs(stored, recipe):
        raise recipe.error("output_dir", f"{folder} holds a run of another recipe, not finished. {choices}.")
    return checkpoint


def open_output_folder(recipe: Recipe, *, resuming: bool) -> Path:
    """Makes the folder ready for a run that `check_output_folder` let pass: creates or clears it, writes the recipe."""
    folder = Path(recipe.config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if not resuming:
        for path in {path for pattern in _RUN_FILES for path in folder.glob(pattern)}:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    write_recipe(recipe)
    return folder


def write_recipe(recipe: Recipe) -> None:
    """Writes the resolved recipe into the run's folder."""
    write_atomically(Path(recipe.config.output_dir) / RECIPE_FILE, resolved_recipe(recipe))


def _refuse_training(recipe: Recipe, stored: Path) -> None:
    there = yaml.safe_load(stored.read_text(encoding="utf-8")).get("stage")
    if there != recipe.stage.name:
        raise recipe.error(
            "output_dir",
            f"{stored.parent} holds a run of `stage: {there}`. Name another folder, e.g. {stored.parent}/evaluation or "
            f"{stored.parent}-{recipe.stage.name}.",
        )


def _differs(stored: Path, recipe: Recipe) -> bool:
    """Whether the stored recipe says anything else than this one; where the folder lies does not matter."""
    old, new = yaml.safe_load(stored.read_text(encoding="utf-8")), yaml.safe_load(resolved_recipe(recipe))
    return any(old.get(key) != new.get(key) for key in {*old, *new} - set(_STARTING_KEYS))


def _checkpoint(recipe: Recipe, folder: Path, resume: str) -> Path:
    if resume.lower() in ("true", "yes"):
        checkpoints = complete_checkpoints(folder)
        if not checkpoints:
            raise recipe.error(
                "resume_from_checkpoint",
                f"{folder} holds no complete checkpoint. Leave the key out to start anew, or name the checkpoint's "
                "folder.",
            )
        return checkpoints[-1]
    path = Path(resume)
    if not path.is_dir():
        raise recipe.error(
            "resume_from_checkpoint", f"there is no folder {resume}; write true, or a checkpoint folder."
        )
    if not is_complete(path):
        raise recipe.error(
            "resume_from_checkpoint",
            f"{resume} is not a complete checkpoint: it lacks the trainer's, the optimizer's or the random state (a "
            "run that was killed while saving, or `save_only_model: true`). Name another one.",
        )
    return path

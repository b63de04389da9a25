"""Whether a run may start in its output folder, and from which checkpoint; told without loading any library.

A run never writes over another one, nor into a folder that is not a run's: the user says `overwrite: true`, resumes,
or names another folder.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from hpt_trl.digests import DIGESTS_FILE
from hpt_trl.environments.trajectories import FOLDER as TRAJECTORIES
from hpt_trl.errors import UserError
from hpt_trl.files import PARTIAL, folder_fault, lines_of
from hpt_trl.run_files import (
    ABANDONED,
    BEFORE_FILE,
    DAMAGED,
    EVALUATIONS,
    LOCK_FILE,
    MARK,
    METRICS_FILE,
    OWNER_FILE,
    RECIPE_FILE,
    REPLACED,
    REPLACING,
    RESULTS_FILE,
    TENSORBOARD,
    TRACKERS_FILE,
    WARNINGS_FILE,
)
from hpt_trl.runs.changes import STARTING_KEYS
from hpt_trl.runs.checkpoints import (
    RUN_FILE,
    complete_checkpoints,
    is_model_alone,
    numbered_checkpoints,
    why_incomplete,
)
from hpt_trl.runs.inputs import refuse_inputs_inside
from hpt_trl.settings.masking import masked

# What a run leaves before its first step is done, trajectories of the evaluation before the training among it.
_BEFORE_TRAINING = {
    *(RECIPE_FILE, BEFORE_FILE, METRICS_FILE, WARNINGS_FILE, EVALUATIONS, TRAJECTORIES),
    *(TRACKERS_FILE, TENSORBOARD),
}
# What a run keeps beside its checkpoints, and starting anew would remove: models of `stage: ref_tuning` among it.
_KEPT = ("checkpoints", DAMAGED, ABANDONED, REPLACED, REPLACING)


class Occupied(UserError):
    """The output folder holds a run that would be written over; nothing is wrong with the recipe."""


@dataclass(frozen=True)
class Start:
    """A run that is to start.

    Attributes:
        values: key -> value as the file and the command line give it.
        stage: name of its stage.
        trains: whether that trains a model.
        works: whether that has neither model nor rows.
        error: makes the error about a key.
    """

    values: dict[str, Any]
    stage: str
    trains: bool
    works: bool
    error: Callable[[str, str], UserError]

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.values["output_dir"]).expanduser()

    def resolved(self) -> dict[str, Any]:
        """The recipe as it is stored: without the keys of one start, but for the folder."""
        return {key: value for key, value in self.values.items() if key not in STARTING_KEYS[:2]}


def _occupied(start: Start, message: str) -> Occupied:
    error = start.error("output_dir", message)
    return Occupied(str(error), error.place)


def check_start(start: Start) -> Path | None:
    """Checks that a run may write to its `output_dir`; nothing is written or removed.

    Returns:
        The checkpoint to resume from, None for a new run.

    Raises:
        Occupied: the folder holds a run that would be written over.
        UserError: the folder is not a run's, or there is nothing to resume from.
    """
    refuse_inputs_inside(start.values, start.error)
    folder = start.folder
    if fault := folder_fault(folder):
        raise start.error("output_dir", f"{folder} {fault}; name a folder that is new or empty.")
    checkpoint = _named_checkpoint(start)
    resumes_here = checkpoint is not None and checkpoint.resolve().parent == folder.resolve()
    if resumes_here or not folder.exists() or not _contents(folder):
        return checkpoint
    if not _is_of_a_run(folder):
        raise start.error(
            "output_dir",
            f"{folder} is not empty and holds no run of hpt-trl, so nothing is written there. Name a folder that is "
            "new or empty.",
        )
    if start.values.get("overwrite"):
        return None
    if not start.trains and not start.works:
        # Whether completions that are there are this recipe's is found out where they are read.
        _refuse_training(start)
        return None
    _refuse_other_run(start)
    return checkpoint


def _named_checkpoint(start: Start) -> Path | None:
    """The checkpoint that the run is to go on from; None for a run that is to begin."""
    resume = start.values.get("resume_from_checkpoint")
    if resume is None or str(resume).lower() in ("false", "no"):
        return None
    if start.values.get("overwrite"):
        raise start.error("overwrite", "a run is either resumed or started anew; drop one of the two keys.")
    return _checkpoint(start, str(resume))


def _refuse_other_run(start: Start) -> None:
    """Refuses to train over a run that has finished, that can go on, or that is another recipe's."""
    folder = start.folder
    choices = "Name another `--output_dir`, or start anew with `--overwrite true`"
    if (folder / RESULTS_FILE).exists():
        raise _occupied(start, f"{folder} holds a finished run. {choices}.")
    if checkpoints := complete_checkpoints(folder):
        raise _occupied(
            start,
            f"{folder} holds a run that stopped after {checkpoints[-1].name}. Go on with `--resume_from_checkpoint "
            f"true`. {choices}.",
        )
    if _failed_at_start(folder):
        return
    if _differs(start):
        raise _occupied(start, f"{folder} holds a run of another recipe, not finished. {choices}.")
    if kept := [name for name in _KEPT if (folder / name).is_dir() and any((folder / name).iterdir())]:
        raise _occupied(
            start,
            f"{folder} holds a run that did not finish, and what it kept in {' and '.join(kept)}. {choices}, which "
            "removes that as well.",
        )
    if left := [path for path in numbered_checkpoints(folder) if (path / RUN_FILE).is_file() or is_model_alone(path)]:
        raise _occupied(
            start,
            f"{folder} holds a run that did not finish, and cannot go on: {why_incomplete(left[-1])}. {choices}, which "
            f"removes {', '.join(path.name for path in left[-3:])} as well.",
        )


def _contents(folder: Path) -> list[Path]:
    """What lies in a folder, but for the marks of a run that holds it and what a killed one was about to write."""
    marks = (LOCK_FILE, OWNER_FILE)
    return [path for path in folder.iterdir() if path.name not in marks and not fnmatch(path.name, f".*{PARTIAL}")]


def _is_of_a_run(folder: Path) -> bool:
    """Whether a run of this package has written to a folder, also where its recipe was torn."""
    recipe = folder / RECIPE_FILE
    try:
        start = recipe.read_bytes()[: len(MARK)]
    except OSError:
        start = None
    noted = any(folder.glob(f"checkpoint-*/{RUN_FILE}"))
    # Any program may have left an empty file of the name.
    known = any((folder / name).exists() for name in (DIGESTS_FILE, RESULTS_FILE))
    return noted or (start is not None and (start == MARK.encode() or (known and not start.strip(b"\0 \n"))))


def stored_recipe(folder: Path) -> dict[str, Any] | None:
    """The resolved recipe of an output folder; None where there is none, or it is torn."""
    try:
        text = (folder / RECIPE_FILE).read_text(encoding="utf-8")
        found = yaml.safe_load(text) if text.startswith(MARK) else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    # Variables are no keys.
    return {key: value for key, value in found.items() if key != "env"}


def _refuse_training(start: Start) -> None:
    folder, there = start.folder, (stored_recipe(start.folder) or {}).get("stage", "unknown (its recipe is torn)")
    if there != start.stage:
        raise start.error(
            "output_dir",
            f"{folder} holds a run of `stage: {there}`. Name another folder, e.g. {folder}/evaluation or "
            f"{folder}-{start.stage}.",
        )


def _differs(start: Start) -> bool:
    """Whether the stored recipe says anything else than this one; where the folder lies does not matter."""
    old = stored_recipe(start.folder)
    if old is None:
        return True
    new = yaml.safe_load(yaml.safe_dump(masked(start.resolved())))
    return any(masked(old).get(key) != new.get(key) for key in {*old, *new} - set(STARTING_KEYS))


def _failed_at_start(folder: Path) -> bool:
    """Whether a run ended before it had trained anything: its corrected recipe may take the folder."""
    if any(path.name not in _BEFORE_TRAINING for path in _contents(folder)) or _has_other_runs(folder):
        return False
    # A warning may be of the step that is being done; what is logged is of one that is.
    return not _goes_beyond(folder / METRICS_FILE, 0) and not _goes_beyond(folder / WARNINGS_FILE, 1)


def _has_other_runs(folder: Path) -> bool:
    """Whether TensorBoard's folder holds more than the run has noted as its own."""
    runs, noted = folder / TENSORBOARD, folder / TRACKERS_FILE
    if not runs.exists():
        return False
    try:
        own = json.loads(noted.read_text(encoding="utf-8"))["tensorboard"]["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return any(path.name != Path(own).name for path in runs.iterdir())


def _goes_beyond(file: Path, step: int) -> bool:
    """Whether any line of a file is of a later step."""
    return file.exists() and any(_is_later(line, step) for line in lines_of(file, errors="replace"))


def _is_later(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] > step
    except (ValueError, KeyError, TypeError):
        # Whatever it is, it may be of one.
        return True


def _checkpoint(start: Start, resume: str) -> Path:
    if resume.lower() in ("true", "yes"):
        if checkpoints := complete_checkpoints(start.folder):
            return checkpoints[-1]
        there = [why for path in reversed(numbered_checkpoints(start.folder)) if (why := why_incomplete(path))]
        said = f" ({there[0]})" if there else ""
        anew = "Write `--overwrite true` in place of the key" if there else "Leave the key out"
        raise start.error(
            "resume_from_checkpoint",
            f"{start.folder} holds no complete checkpoint{said}. {anew} to start anew, or name a checkpoint's folder.",
        )
    path = Path(resume).expanduser()
    if not path.is_dir():
        own = start.folder / (f"checkpoint-{resume}" if resume.isdecimal() else path.name)
        meant = f" Did you mean {own}?" if own.name.startswith("checkpoint-") and own.is_dir() else ""
        raise start.error(
            "resume_from_checkpoint", f"there is no folder {resume}; write true, or a checkpoint folder.{meant}"
        )
    if (why := why_incomplete(path)) is not None:
        raise start.error("resume_from_checkpoint", f"{why}. Name another checkpoint.")
    return path

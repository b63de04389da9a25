"""Whether a run may start in its output folder, and from which checkpoint; told without loading any library.

A run never writes over another one, nor into a folder that is not a run's: the user says `overwrite: true`, resumes,
or names another folder.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hpt_trl.environments.trajectories import FOLDER as TRAJECTORIES
from hpt_trl.errors import UserError
from hpt_trl.files import folder_fault, lines_of
from hpt_trl.run_files import (
    BEFORE_FILE,
    EVALUATIONS,
    MARK,
    METRICS_FILE,
    RECIPE_FILE,
    RESULTS_FILE,
    TENSORBOARD,
    TRACKERS_FILE,
    WARNINGS_FILE,
)
from hpt_trl.runs.checkpoints import complete_checkpoints, why_incomplete

# Keys that say how a run is started, not what it does.
STARTING_KEYS = ("overwrite", "resume_from_checkpoint", "output_dir")
# What a run leaves before its first step is done, trajectories of the evaluation before the training among it.
_BEFORE_TRAINING = {
    *(RECIPE_FILE, BEFORE_FILE, METRICS_FILE, WARNINGS_FILE, EVALUATIONS, TRAJECTORIES),
    *(TRACKERS_FILE, TENSORBOARD),
}


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
    folder, checkpoint = start.folder, None
    if fault := folder_fault(folder):
        raise start.error("output_dir", f"{folder} {fault}; name a folder that is new or empty.")
    resume = start.values.get("resume_from_checkpoint")
    if resume is not None and str(resume).lower() not in ("false", "no"):
        if start.values.get("overwrite"):
            raise start.error("overwrite", "a run is either resumed or started anew; drop one of the two keys.")
        checkpoint = _checkpoint(start, str(resume))
        if checkpoint.resolve().parent == folder.resolve():
            return checkpoint
    if not folder.exists() or not any(folder.iterdir()):
        return checkpoint
    stored = folder / RECIPE_FILE
    if not stored.is_file() or not stored.read_text(encoding="utf-8").startswith(MARK):
        raise start.error(
            "output_dir",
            f"{folder} is not empty and holds no run of hpt-trl, so nothing is written there. Name a folder that is "
            "new or empty.",
        )
    if start.values.get("overwrite"):
        return None
    if not start.trains and not start.works:
        # Whether completions that are there are this recipe's is found out where they are read.
        _refuse_training(start, stored)
        return None
    choices = "Name another `--output_dir`, or start anew with `--overwrite true`"
    if (folder / RESULTS_FILE).exists():
        raise _occupied(start, f"{folder} holds a finished run. {choices}.")
    if checkpoints := complete_checkpoints(folder):
        raise _occupied(
            start,
            f"{folder} holds a run that stopped after {checkpoints[-1].name}. Go on with `--resume_from_checkpoint "
            f"true`. {choices}.",
        )
    if _differs(start, stored) and not _failed_at_start(folder):
        raise _occupied(start, f"{folder} holds a run of another recipe, not finished. {choices}.")
    return checkpoint


def _refuse_training(start: Start, stored: Path) -> None:
    there = yaml.safe_load(stored.read_text(encoding="utf-8")).get("stage")
    if there != start.stage:
        raise start.error(
            "output_dir",
            f"{stored.parent} holds a run of `stage: {there}`. Name another folder, e.g. {stored.parent}/evaluation or "
            f"{stored.parent}-{start.stage}.",
        )


def _differs(start: Start, stored: Path) -> bool:
    """Whether the stored recipe says anything else than this one; where the folder lies does not matter."""
    old = yaml.safe_load(stored.read_text(encoding="utf-8"))
    new = yaml.safe_load(yaml.safe_dump(start.resolved()))
    return any(old.get(key) != new.get(key) for key in {*old, *new} - set(STARTING_KEYS))


def _failed_at_start(folder: Path) -> bool:
    """Whether a run ended before it had trained anything: its corrected recipe may take the folder."""
    if any(path.name not in _BEFORE_TRAINING for path in folder.iterdir()) or _has_other_runs(folder):
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
        checkpoints = complete_checkpoints(start.folder)
        if not checkpoints:
            raise start.error(
                "resume_from_checkpoint",
                f"{start.folder} holds no complete checkpoint. Leave the key out to start anew, or name the "
                "checkpoint's folder.",
            )
        return checkpoints[-1]
    path = Path(resume)
    if not path.is_dir():
        raise start.error("resume_from_checkpoint", f"there is no folder {resume}; write true, or a checkpoint folder.")
    if (why := why_incomplete(path)) is not None:
        raise start.error("resume_from_checkpoint", f"{why}. Name another checkpoint.")
    return path

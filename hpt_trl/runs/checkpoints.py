"""Checkpoints that a run can go on from, and what to say where one could not be written.

The module imports nothing heavy: launchers ask it for advice as they end.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpt_trl.digests import DIGESTS_FILE, damage_of, has_digests
from hpt_trl.errors import UserError
from hpt_trl.files import parsed_json
from hpt_trl.run_files import RECIPE_FILE

# What a checkpoint notes of its run; where it is, so are digests.
RUN_FILE = "run.json"
TRAINER_STATE = "trainer_state.json"
# Of former versions: the note of several processes that all of them have written their part.
PROCESSES_FILE = "processes.txt"

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of torch.save, which hides the system's error behind its own, and of safetensors.
_NO_ROOM_TEXTS = {
    "inline_container.cc": "a file could not be written in full",
    "No space left on device": "no space left on device",
    "Disk quota exceeded": "disk quota exceeded",
    "File too large": "file too large",
}


def checkpoint_name(step: int) -> str:
    """The folder of a step's checkpoint, as transformers calls it."""
    return f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name; -1 where there is none."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else -1


def numbered_checkpoints(folder: Path) -> list[Path]:
    """Folders that are named as checkpoints, in the order of their steps."""
    return sorted((path for path in folder.glob("checkpoint-*") if step_of(path) >= 0 and path.is_dir()), key=step_of)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that a run can go on from as far as their files' sizes tell, in the order of their steps."""
    return [path for path in numbered_checkpoints(folder) if is_complete(path)]


def is_complete(checkpoint: Path) -> bool:
    """Whether a run can go on from a checkpoint as far as its files' sizes tell."""
    return why_incomplete(checkpoint) is None


def why_incomplete(checkpoint: Path) -> str | None:
    """What a checkpoint lacks, without reading its files; None where nothing shows."""
    if (checkpoint / RUN_FILE).is_file() and not has_digests(checkpoint):
        return f"{checkpoint / DIGESTS_FILE} is missing"
    if (damage := damage_of(checkpoint, contents=False)) is not None:
        return damage
    # The trainer would go on without the optimizer's state or the schedule's, to other weights.
    if lacking := [name for name, there in _states(checkpoint).items() if not there]:
        why = "`save_only_model: true`, or a run that was killed while saving"
        return f"{checkpoint} lacks the {' and the '.join(lacking)} ({why})"
    if not has_digests(checkpoint) and (torn := _torn_state(checkpoint / TRAINER_STATE)):
        return torn
    # Of former versions, several processes; other programs than this one leave no note.
    alone = has_digests(checkpoint) or not (checkpoint / "rng_state_0.pth").exists()
    if not alone and (checkpoint.parent / RECIPE_FILE).is_file() and not (checkpoint / PROCESSES_FILE).exists():
        return f"{checkpoint} lacks {PROCESSES_FILE}: not all processes had written their part"
    return None


def is_model_alone(checkpoint: Path) -> bool:
    """Whether a checkpoint holds a model without states to go on from, as `save_only_model` leaves it, as a whole."""
    has_state, *others = _states(checkpoint).values()
    if not has_state or any(others):
        return False
    # The trainer's state is what is written last.
    known = has_digests(checkpoint)
    return (damage_of(checkpoint, contents=False) if known else _torn_state(checkpoint / TRAINER_STATE)) is None


def _states(checkpoint: Path) -> dict[str, bool]:
    """What a run goes on with, and whether it is there."""
    deepspeed = any(checkpoint.glob("global_step*"))
    return {
        "trainer's state": (checkpoint / TRAINER_STATE).is_file(),
        "optimizer's state": deepspeed or any(checkpoint.glob("optimizer*")),
        "schedule's state": deepspeed or (checkpoint / "scheduler.pt").is_file(),
        "random state": any(checkpoint.glob("rng_state*")),
    }


def is_unpickled(checkpoint: Path) -> bool:
    """Whether PyTorch reads a checkpoint by running what it holds: the shards of `SHARDED_STATE_DICT`."""
    return any(checkpoint.glob("*/.metadata"))


def _torn_state(path: Path) -> str | None:
    try:
        state = parsed_json(path.read_bytes())
        return None if isinstance(state["global_step"], int) else f"{path} names no step"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path} is torn"


@contextmanager
def full_disk_explained(folder: str | Path) -> Iterator[None]:
    """While open, a write that fails for want of room ends with what is left and how to go on.

    Raises:
        UserError: a file of the run could not be written.
    """
    try:
        yield
    except Exception as error:
        if (reason := _no_room(error)) is None:
            raise
        kept = complete_checkpoints(Path(folder))
        again = (
            f"{kept[-1].name} is complete: make room and go on from it with --resume_from_checkpoint true."
            if kept
            else "No checkpoint is complete: make room and start anew."
        )
        # Data may be cached on another disk than the run's.
        file = getattr(error, "filename", None)
        place = Path(str(file)).parent if file else Path(folder)
        place = place if place.is_dir() else Path(folder)
        free = f"{shutil.disk_usage(place).free / 2**30:.1f} GiB are free there"
        raise UserError(f"{file or folder} could not be written ({reason}; {free}). {again}") from error


def _no_room(error: BaseException) -> str | None:
    """What says that a file could not be written in full; None for any other error."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return str(error.strerror)
    for said, reason in _NO_ROOM_TEXTS.items():
        if said in str(error):
            return reason
    before = error.__cause__ or error.__context__
    return None if before is None else _no_room(before)

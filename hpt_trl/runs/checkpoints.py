"""Checkpoints that a run can go on from, and what to say where one could not be written.

The module imports nothing heavy: launchers ask it for advice as they end.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpt_trl.errors import UserError
from hpt_trl.run_files import RECIPE_FILE

PROCESSES_FILE = "processes.txt"

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of torch.save, which hides the system's error behind its own, and of safetensors.
_NO_ROOM_TEXTS = {
    "inline_container.cc": "a file could not be written in full",
    "No space left on device": "no space left on device",
    "Disk quota exceeded": "disk quota exceeded",
    "File too large": "file too large",
}


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that a run can go on from, in the order of their steps."""
    found = [path for path in folder.glob("checkpoint-*") if is_complete(path)]
    return sorted(
        (path for path in found if path.name.removeprefix("checkpoint-").isdigit()),
        key=lambda path: int(path.name.removeprefix("checkpoint-")),
    )


def is_complete(checkpoint: Path) -> bool:
    """Whether all states are there. The trainer would go on without the optimizer's, to other weights; it writes
    trainer_state.json last, so a run that was killed while saving leaves a folder without it."""
    optimizer = any(checkpoint.glob("optimizer*")) or any(checkpoint.glob("global_step*"))
    # Of several processes; other programs than this one leave no note.
    noted = not (checkpoint / "rng_state_0.pth").exists() or (checkpoint / PROCESSES_FILE).exists()
    noted = noted or not (checkpoint.parent / RECIPE_FILE).is_file()
    return (checkpoint / "trainer_state.json").is_file() and optimizer and noted and any(checkpoint.glob("rng_state*"))


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

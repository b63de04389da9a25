"""One run in an output folder: the second one is told, before it writes, who is at work there.

The kernel holds the lock (flock) and lets go of it when its owner ends, also by SIGKILL. Where machines share a disk on
which such a lock does not reach the others, a note tells that its owner has lately been alive.
"""

import errno
import json
import os
import platform
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hpt_trl.errors import UserError
from hpt_trl.files import parsed_json, write_atomically
from hpt_trl.run_files import LAUNCH_ID, LOCK_FILE, OWNER_FILE
from hpt_trl.settings.masking import masked_command

# Seconds between two signs of life, for how many one is waited for, and after how many none is expected.
_BEAT, _WATCHED, _DEAD_AFTER = 30, 70, 300
# What a disk says that knows no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def only_run(folder: Path, command: Sequence[str]) -> Iterator[None]:
    """Holds an output folder, which is made where it is not there, while a run writes to it.

    Args:
        folder: Of the run.
        command: The words that started it, for whoever comes second.

    Raises:
        UserError: another run writes to it.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock, note = FileLock(folder / LOCK_FILE), folder / OWNER_FILE
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(_told(folder, _owner(note))) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        Path(lock.lock_file).unlink(missing_ok=True)
        raise UserError(
            f"{folder} lies on a disk that locks no files ({error}), so two runs might write there at once. Name an "
            "`--output_dir` on another disk, or have locks switched on where it is mounted."
        ) from error
    try:
        owner = _owner(note)
        if _lives_elsewhere(owner, note):
            raise UserError(f"{_told(folder, owner)} If it is dead, remove {note}.")
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        shown = masked_command(shlex.join(command))
        said = {"host": platform.node(), "pid": os.getpid(), "since": started, "command": shown}
        write_atomically(note, json.dumps(said | {"launch": os.environ.get(LAUNCH_ID)}) + "\n")
        try:
            with _beating(note):
                yield
        finally:
            note.unlink(missing_ok=True)
    finally:
        # Whoever waits for the file that is removed sees that it has no name any more, and makes another one.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        if is_new:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def _beating(note: Path) -> Iterator[None]:
    """Touches the note as long as the context is open."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT):
            with suppress(OSError):
                os.utime(note)

    thread = threading.Thread(target=beat, name="run-owner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _owner(note: Path) -> dict[str, Any]:
    """What an owner says of itself; empty where none does."""
    try:
        found = parsed_json(note.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lives_elsewhere(owner: dict[str, Any], note: Path) -> bool:
    """Whether an owner on another machine has lately been alive; of those on this one the lock tells."""
    if not owner or owner.get("host") == platform.node():
        return False
    launch = os.environ.get(LAUNCH_ID)
    if launch and owner.get("launch") == launch:
        return False
    seen = _sign(note)
    if seen is None or _now(note.parent) - seen >= _DEAD_AFTER:
        return False
    # Where a killed run is started anew on another machine, its note is fresh and its lock is free.
    place = f"process {owner.get('pid')} on {owner.get('host')}"
    print(f"Looking whether {place}, which wrote to {note.parent}, is alive: up to {_WATCHED} s.", flush=True)
    until = time.monotonic() + _WATCHED
    while (sign := _sign(note)) == seen and time.monotonic() < until:
        time.sleep(1)
    return sign is not None and sign != seen


def _now(folder: Path) -> float:
    """Time by the clock that signs of life have theirs from: the machine's that has the disk, where it differs."""
    lock = folder / LOCK_FILE
    os.utime(lock)
    return lock.stat().st_mtime


def _sign(note: Path) -> float | None:
    """Time of an owner's last sign of life; None once it has ended."""
    try:
        # Opened, the time is asked of the machine that has the disk; else it may be one that is remembered here.
        with note.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _told(folder: Path, owner: dict[str, Any]) -> str:
    who = ""
    if owner:
        place = f"process {owner.get('pid')}" + (
            "" if owner.get("host") == platform.node() else f" on {owner.get('host')}"
        )
        who = f" ({place}, since {owner.get('since')}: {owner.get('command')})"
    return f"another run writes to {folder}{who}. Wait for it to end, or name another `--output_dir`."

"""Folders that are written under another name and put in place at the end.

What fails or is stopped leaves nothing behind, and a folder that is replaced lies there until the new one does.
"""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpt_trl.files import sync_to_disk
from hpt_trl.signals import ending_on_signals

_OLD = ".old"


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A new folder beside another one, which is removed at the end, SIGTERM and SIGHUP included.

    Raises:
        OSError: it cannot be made.
    """
    new = _beside(target)
    with ending_on_signals():
        try:
            new.mkdir(parents=True)
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)


def put_in_place(new: Path, target: Path) -> None:
    """Renames a finished folder to its name; the one before it is removed after.

    Raises:
        OSError: it cannot be renamed; the one before it is in its place again.
    """
    old = Path(f"{_beside(target)}{_OLD}")
    try:
        # Onto nothing and onto an empty folder it is renamed in one go.
        if target.exists() and any(target.iterdir()):
            os.replace(target, old)
        os.replace(new, target)
        sync_to_disk(target.parent)
    finally:
        _put_back(old, target)


def replace_files(new: Path, target: Path, last: str) -> None:
    """Moves the files of a finished folder into one that holds other things as well, in place of those of their names.

    Args:
        new: The finished folder, which is gone after.
        target: The other one.
        last: Name of the file that says what the others are: the former one goes first, the new one comes last.

    Raises:
        OSError: a file cannot be moved.
    """
    (target / last).unlink(missing_ok=True)
    files = sorted(path for path in new.rglob("*") if path.is_file() and path != new / last)
    for path in [*files, new / last]:
        place = target / path.relative_to(new)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    for folder in {target, *(target / path.relative_to(new).parent for path in files)}:
        sync_to_disk(folder)
    shutil.rmtree(new)


def clear_left(target: Path) -> None:
    """Removes what processes of this machine that were killed have left beside a folder.

    Raises:
        OSError: the parent folder cannot be read.
    """
    if not target.parent.is_dir():
        return
    pattern = re.compile(rf"{re.escape(_named(target))}\.(\d{{1,9}})({re.escape(_OLD)})?")
    for path in target.parent.iterdir():
        left = pattern.fullmatch(path.name)
        # One of this process's number was another one's: this one has written nothing yet.
        if left is None or (int(left[1]) != os.getpid() and _is_alive(int(left[1]))):
            continue
        if left[2]:
            _put_back(path, target)
        shutil.rmtree(path, ignore_errors=True)


def _put_back(old: Path, target: Path) -> None:
    """Puts a replaced folder back where no other took its place, else removes it."""
    if old.exists() and not target.exists():
        os.replace(old, target)
    shutil.rmtree(old, ignore_errors=True)


def _named(target: Path) -> str:
    # With the machine's name: on a shared disk a number says nothing of another machine's processes.
    return f".{target.name}.{platform.node()}"


def _beside(target: Path) -> Path:
    return target.with_name(f"{_named(target)}.{os.getpid()}")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

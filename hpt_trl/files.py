"""Small files that a run leaves, written in one go; JSON that any reader takes; paths that lead nowhere; the cache."""

import errno
import glob
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Ending of what is being written; a process that was killed leaves it behind.
PARTIAL = ".partial"


def cache_folder() -> Path:
    """Return the folder for what is made once and read often: `HPT_TRL_CACHE`, or `~/.cache/hpt-trl`."""
    return Path(os.environ.get("HPT_TRL_CACHE") or "~/.cache/hpt-trl").expanduser()


def valid_json(value: Any) -> Any:
    """The value with NaN and infinities as None, tensors and NumPy numbers as floats, what JSON lacks as text."""
    if isinstance(value, dict):
        return {str(key): valid_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [valid_json(item) for item in value]
    if isinstance(value, str | bool | int | None):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


def parsed_json(text: str | bytes) -> Any:
    """What JSON from outside says.

    Raises:
        ValueError: it is no JSON, or nested deeper than the parser goes.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def lines_of(path: str | Path, *, errors: str = "strict") -> list[str]:
    """The lines of a file of JSON lines, cut at line feeds alone, without the mark that some editors begin UTF-8 with.

    A text in JSON may hold other characters that end a line (U+2028, U+2029, U+0085), at which `str.splitlines` cuts.

    Args:
        errors: What becomes of bytes that are not UTF-8, as `bytes.decode` has it.
    """
    lines = Path(path).read_text(encoding="utf-8-sig", errors=errors).split("\n")
    return lines if lines[-1] else lines[:-1]


def path_fault(text: str | Path) -> str | None:
    """Why a path can lead to nothing; None where it leads to a file or folder that may be read, or is free.

    What has no fault can be asked by `Path.exists` and its like, which raise on some of what has one.
    """
    try:
        path = Path(text).expanduser()
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return f"is a link to {os.readlink(path)}, which is not there" if os.path.islink(path) else None
    except UnicodeEncodeError:
        return "holds half a character"
    except OSError as error:
        return f"cannot be looked up: {os.strerror(error.errno or 0)}"
    # A null byte, or a user whom the system does not know.
    except (ValueError, RuntimeError) as error:
        return f"cannot be looked up: {error}"
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        return "is neither a file nor a folder, but a pipe, a socket or a device"
    if not os.access(path, os.R_OK | (os.X_OK if stat.S_ISDIR(mode) else 0)):
        return "may not be read"
    return None


def folder_fault(folder: Path) -> str | None:
    """Why nothing can be written to a folder, which need not be there; None where something can.

    In the folder above one that is not there, another is made and removed: some say that they can be written to, and
    cannot (`/proc`, a full disk).
    """
    if fault := path_fault(folder):
        return fault
    place = folder.expanduser().absolute()
    if os.path.lexists(place):
        if not place.is_dir():
            return "is a file"
        return None if os.access(place, os.W_OK | os.X_OK) else "cannot be written to"
    while not os.path.lexists(place):
        place = place.parent
    if fault := path_fault(place):
        return f"cannot be made, since {place} {fault}"
    if not place.is_dir():
        return f"cannot be made, since {place} is a file"
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".hpt-trl-", dir=place))
    except OSError as error:
        return f"cannot be made in {place}: {os.strerror(error.errno or 0)}"
    return None


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file in one go: a run that is killed leaves the old file or the new one, never half of one.

    Half a character, as JSON may hold it and UTF-8 may not, becomes a question mark.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    sync_to_disk(temporary)
    os.replace(temporary, path)


def sync_to_disk(path: Path) -> None:
    """Waits until a file's bytes, or a folder's entries, are on the disk: what is renamed after is whole there as well.

    Raises:
        OSError: it cannot be opened or written.
    """
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        # Some network disks keep a folder's entries in order by themselves, and refuse to be asked.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(opened)


def matching(pattern: str) -> list[str]:
    """The paths that match a pattern in which `**` stands for any folders, as `glob` finds them; each folder once.

    Links are followed, but into no folder a second time: in a circle of them `glob` would find paths without end.
    """
    parts = pattern.split(os.sep)
    if "**" not in parts:
        return glob.glob(pattern)
    at = parts.index("**")
    head, tail = os.sep.join(parts[:at]) or (os.sep if at else ""), os.sep.join(parts[at + 1 :])
    found: list[str] = []
    for folder in _folders_below(glob.glob(head) if head else [""]):
        within = os.path.join(glob.escape(folder), tail or "*")
        found += [*([folder] if folder and not tail else []), *matching(within)]
    return list(dict.fromkeys(found))


def _folders_below(starts: list[str]) -> Iterator[str]:
    """These folders and all that lie in them, but hidden ones."""
    seen: set[str] = set()
    for start in starts:
        for folder, inner, _ in os.walk(start or ".", followlinks=True):
            place = os.path.realpath(folder)
            if place in seen:
                inner.clear()
                continue
            seen.add(place)
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            yield folder if start else os.path.normpath(folder).removeprefix(".")

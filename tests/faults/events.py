"""Where a run is stopped: before the k-th thing that it does to a file, which comes to the same place each time.

A run's own audit hook counts what it opens for writing, renames, removes and makes below a folder. Writers in C++ and
Rust (torch.save, safetensors) tell Python nothing: the inside of them is reached some milliseconds after an event.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit event -> places of its path and of the descriptor of the folder that it is relative to.
_EVENTS = {
    "open": (0, None),
    "os.rename": (1, 3),
    "os.remove": (0, 1),
    "os.mkdir": (0, 2),
    "os.rmdir": (0, 1),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
    "os.truncate": (0, None),
}
REMOVALS = ("os.remove", "os.rmdir")
# What a run does, in the order of its files.
OPENING, TRAINING, SAVING, ROTATING, CLOSING = PHASES = ("opening", "training", "saving", "rotating", "closing")


@dataclass(frozen=True)
class Kill:
    """When a run is killed, by SIGKILL.

    Attributes:
        event: the number of the file event before which it is; None by the clock.
        torn: an open file is emptied first, as its writer leaves it that has not yet written.
        delay: seconds after the event.
        after: seconds after the run began, where there is no event.
        rank: the process that is killed, whose events are counted.
        everyone: all processes at once with it.
    """

    event: int | None = None
    torn: bool = False
    delay: float = 0.0
    after: float = 0.0
    rank: int = 0
    everyone: bool = True

    @property
    def by_parent(self) -> bool:
        """Whether another process sends it."""
        return self.event is None or self.delay > 0


class Watch:
    """Counts the events of this process below a folder, and acts at one of them.

    Args:
        act: what is done before event number `at`; it gets the event and the path.
    """

    def __init__(self, folder: str, at: int | None, act: Callable[[str, str], None]):
        self.folder, self.at, self.act, self.process = os.path.realpath(folder) + os.sep, at, act, os.getpid()
        self.seen: list[tuple[str, str]] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS or os.getpid() != self.process:
            return
        path = _path(event, arguments)
        if path is None or not path.startswith(self.folder):
            return
        if len(self.seen) == self.at:
            # Whatever that does to files is no event.
            self.at = None
            self.act(_opening(arguments) if event == "open" else event, path)
        self.seen.append((event, path.removeprefix(self.folder)))


def _path(event: str, arguments: tuple[Any, ...]) -> str | None:
    """Whole path of what an event changes; None where it changes nothing."""
    if event == "open" and not (arguments[2] or 0) & _WRITES:
        return None
    place, descriptor = _EVENTS[event]
    path = arguments[place]
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    path = os.fsdecode(path)
    folder = -1 if descriptor is None else arguments[descriptor]
    if folder is not None and folder >= 0 and not os.path.isabs(path):
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path))


def _opening(arguments: tuple[Any, ...]) -> str:
    return "emptied" if (arguments[2] or 0) & os.O_TRUNC else "open"


def die(event: str, path: str, *, torn: bool) -> None:
    """Kills this process, as `Kill` says."""
    if torn and event == "emptied":
        Path(path).write_bytes(b"")
    os.kill(os.getpid(), signal.SIGKILL)


def phases(events: list[tuple[str, str]]) -> list[str]:
    """Of each event of a whole run what the run did then; paths are relative to the folder of its output folder."""
    of_checkpoints = [_of_checkpoints(path) for _, path in events]
    if not any(of_checkpoints):
        return [TRAINING] * len(events)
    last = max(number for number, found in enumerate(of_checkpoints) if found)
    found = []
    for number, (event, _) in enumerate(events):
        if of_checkpoints[number]:
            found.append(ROTATING if event in REMOVALS else SAVING)
        elif not any(of_checkpoints[:number]):
            found.append(OPENING)
        else:
            found.append(TRAINING if number < last else CLOSING)
    return found


def _of_checkpoints(path: str) -> bool:
    # The second part is below the output folder; what is written aside has a name with a dot.
    return any(part.startswith(("checkpoint", ".saving", ".removing", "abandoned")) for part in Path(path).parts[1:])

"""Runs that end by SIGKILL at a file operation: forks of the test, counted and ended by an audit hook."""

import os
import signal
import sys
from pathlib import Path

from hpt_trl.runs import runner

# What changes a folder and raises an audit event; the C++ writers of tensors raise none.
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink", "os.link")


def changes_of(path: str, words: list[str], folder: Path, log: Path, *, kill_at: int | None = None) -> list[str]:
    """Runs a recipe in a fork; returns the changes below a folder, in their order.

    Args:
        path: Of the recipe.
        words: Its overrides.
        folder: Output folder of the run.
        log: Where the fork notes them.
        kill_at: Number of the change that the run does not come to make; by default it runs to its end.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _watch(str(folder), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), kill_at)
            runner.run(path, words)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (0 if kill_at is None else -signal.SIGKILL)
    return log.read_text().splitlines()


def _watch(folder: str, log: int, kill_at: int | None) -> None:
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in _CHANGES) or not str(arguments[0]).startswith(folder):
            return
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        os.write(log, f"{event} {str(arguments[0])[len(folder) :]}\n".encode())

    sys.addaudithook(hook)

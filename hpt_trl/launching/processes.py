"""Processes that a command starts: each in a group of its own, which ends with the command."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType

# Seconds that a process has to end by itself.
PATIENCE = 10.0
# How often Ctrl-C is passed on.
_INTERRUPTS = 2
_PR_SET_PDEATHSIG = 1


def hpt_trl_command(*words: str) -> list[str]:
    """Returns the command of one plain process of this package."""
    return [sys.executable, "-m", "hpt_trl", *words]


def call(
    command: list[str], *, capture: bool = False, variables: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, str]:
    """Runs a command to its end; whatever ends the waiting (a kill) ends all its processes as well.

    Ctrl-C is passed on: a training saves a checkpoint first, and ends at once at the second one. The third one ends the
    waiting.

    Args:
        capture: keep what it prints; otherwise that goes straight to the terminal, progress bars included.
        variables: variables of the environment that it has beside those of this process.

    Returns:
        The exit code, and what it printed on stderr if captured.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pipe = subprocess.PIPE if capture else None
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if capture else None,
        stderr=pipe,
        text=True,
        env={**os.environ, **variables},
        # A group of its own: Ctrl-C reaches this process alone, which passes it on, or ends the whole group.
        start_new_session=True,
        preexec_fn=end_with_parent if sys.platform == "linux" else None,
    )
    try:
        errors = _wait(process)
        return process.returncode, errors or ""
    finally:
        if process.poll() is None:
            _end(process)


def _wait(process: "subprocess.Popen[str]") -> str | None:
    """Waits for the end of a process, which Ctrl-C does not reach by itself; returns what it printed on stderr."""
    for _ in range(_INTERRUPTS):
        try:
            return process.communicate()[1]
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
    return process.communicate()[1]


def end_with_parent() -> None:
    """Asks Linux to end this process when its parent is killed in a way that leaves that no last word."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            # Also what the process itself started and left.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

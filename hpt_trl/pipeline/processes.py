"""Processes of a pipeline's stages: started in a group of their own, which ends with the pipeline."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpt_trl.recipe_file import Sources
from hpt_trl.values import did_you_mean

# Seconds that a stage has to end by itself.
PATIENCE = 10.0
_PR_SET_PDEATHSIG = 1


def hpt_trl_command(*words: str) -> list[str]:
    """Returns the command of one plain process of this package."""
    return [sys.executable, "-m", "hpt_trl", *words]


def accelerate_command(config: Path, processes: int | None, *words: str) -> list[str]:
    """Returns the command that starts as many processes as an accelerate config says, on a free port."""
    count = [] if processes is None else ["--num_processes", str(processes)]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *count]
    return [*launcher, "--main_process_port", "0", "-m", "hpt_trl", *words]


def find_accelerate_config(name: str | None, pipeline: Sources) -> Path | None:
    """Returns the accelerate config that a pipeline names: a path, from the pipeline's folder first, or a shipped name.

    Raises:
        UserError: there is no such file.
    """
    if name is None:
        return None
    package = Path(__file__).resolve().parents[1]
    installed = package / "_accelerate_configs"
    shipped = installed if installed.is_dir() else package.parent / "accelerate_configs"
    candidates = [pipeline.file.path.parent / name, Path(name), shipped / f"{name.removesuffix('.yaml')}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = sorted(path.stem for path in shipped.glob("*.yaml"))
    known = f" Names: {', '.join(names)}." if names else ""
    raise pipeline.error("accelerate_config", f"there is no file {name}.{did_you_mean(name, names)}{known}")


def call(
    command: list[str], *, capture: bool = False, meanwhile: Callable[[], object] | None = None
) -> tuple[int, str]:
    """Runs a command to its end; whatever ends the waiting (Ctrl-C, a kill) ends all its processes as well.

    Args:
        capture: keep what it prints; otherwise that goes straight to the terminal, progress bars included.
        meanwhile: called once while the command runs.

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
        # A group of its own: Ctrl-C reaches the pipeline alone, which then ends the whole group.
        start_new_session=True,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )
    try:
        if meanwhile is not None:
            meanwhile()
        _, errors = process.communicate()
        return process.returncode, errors or ""
    finally:
        if process.poll() is None:
            _end(process)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into an exception, so that a pipeline that is told to end does not leave its stage."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            # Also what the stage itself started and left.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _end_with_parent() -> None:
    """In the child: asks Linux to end it when the pipeline is killed in a way that leaves it no last word."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

"""What `--launcher ray` runs in a Ray cluster: one process of a recipe, and the watch over its failures.

Apart from `ray_train`, which runs in the user's process and has a message for where Ray is not installed.
"""

import io
import os
import socket
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import ray.train
from ray.exceptions import RayActorError
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.callback import UserCallback
from ray.util.queue import Queue

from hpt_trl.errors import UserError
from hpt_trl.run_files import RESULTS_FILE
from hpt_trl.runs.quiet import quiet_libraries


@dataclass(frozen=True)
class Left:
    """What lies in an output folder: what a run can go on from, and what it ends with.

    Attributes:
        checkpoints: name -> when its last file was written, in ns.
        results: when results.json was written, in ns; None where it is not there.
    """

    checkpoints: dict[str, int]
    results: int | None

    def since(self, before: "Left") -> "Left":
        """Only what has been written since then."""
        new = {name: time for name, time in self.checkpoints.items() if before.checkpoints.get(name) != time}
        return Left(new, None if self.results == before.results else self.results)


def left_in(output_dir: str) -> Left:
    """Looks at an output folder, which need not be there."""
    folder = Path(output_dir)
    results = folder / RESULTS_FILE
    return Left(
        {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("checkpoint-*/trainer_state.json")},
        results.stat().st_mtime_ns if results.is_file() else None,
    )


@dataclass(frozen=True)
class Task:
    """What each worker is told.

    Attributes:
        recipe: path or name of the recipe.
        overrides: words of the command line after it.
        folder: working directory of the user's process.
        storage: a folder that the user's process has made for the run.
        output_dir: output folder of the recipe; empty where it names none, which the run itself refuses.
        before: what lay there before the run.
        environment: variables that `accelerate launch` would set for the profile.
        terminal: takes what the user is to read, as pairs of stream and text.
    """

    recipe: str
    overrides: list[str]
    folder: str
    storage: str
    output_dir: str
    before: Left
    environment: dict[str, str]
    terminal: Queue


def work(config: dict[str, Any]) -> None:
    """One process of the run; after a failure Ray calls it again in new workers.

    By then Ray has set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT and ACCELERATE_TORCH_DEVICE and has made
    the process group, all of which accelerate takes over.

    Args:
        config: the `Task` by the name `task`; Ray passes on nothing but a dictionary.

    Raises:
        UserError: a mistake of the user, which ends the run; see `Failures`.
    """
    task: Task = config["task"]
    with ExitStack() as stack:
        if ray.train.get_context().get_world_rank() == 0:
            stack.enter_context(redirect_stdout(_Tee(task.terminal, "stdout", sys.stdout)))
            stack.enter_context(redirect_stderr(_Tee(task.terminal, "stderr", sys.stderr)))
        _enter_folder(task)
        quiet_libraries()
        os.environ.update(task.environment)
        # All go by what the first one sees.
        words = broadcast_from_rank_zero(words_of_attempt(task))
        if words is None:
            print(f"The run was complete when the worker failed: {task.output_dir}")
            return

        from hpt_trl.runs import runner

        runner.run(task.recipe, words)


def _enter_folder(task: Task) -> None:
    """Goes where the user is, so that relative paths mean the same.

    Raises:
        UserError: the worker does not see the user's files.
    """
    for folder in (task.folder, task.storage):
        if not Path(folder).is_dir():
            raise UserError(
                f"the Ray node {socket.gethostname()} does not see {folder}. With `--launcher ray` the working "
                "directory, the recipe, its data and `output_dir` must lie on storage that all nodes share, under the "
                "same paths (NFS, Lustre or the like)."
            )
    os.chdir(task.folder)


def words_of_attempt(task: Task) -> list[str] | None:
    """The overrides of this attempt; None where nothing is left to do.

    A run goes on from the last checkpoint of its own. Where it has made none it is started as the user asked: what lay
    in the output folder before is not the run's, and refused, overwritten or resumed from like the first time. It
    begins anew over its own where none of them can be gone on from, as with `save_only_model`.
    """
    new = left_in(task.output_dir).since(task.before)
    if new.results is not None:
        return None
    if not new.checkpoints:
        return task.overrides

    from hpt_trl.runs.checkpoints import complete_checkpoints

    complete = [path for path in complete_checkpoints(Path(task.output_dir)) if path.name in new.checkpoints]
    if not complete:
        resumed = any(word.startswith("--resume_from_checkpoint") for word in task.overrides)
        return task.overrides if resumed else [*task.overrides, "--overwrite", "true"]
    print(f"Going on from {complete[-1]}.")
    return [*task.overrides, "--overwrite", "false", "--resume_from_checkpoint", str(complete[-1])]


class Failures(UserCallback):
    """Ends the run after a mistake of the user, and tells of every other failure. It lives in Ray's controller."""

    def __init__(self, terminal: Queue, allowed: int):
        self.terminal, self.allowed, self.count = terminal, allowed, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, UserError):
                # Ray Train starts again after what a worker raises, and ends after what a callback raises.
                raise error
        self.count += 1
        if self.count <= self.allowed:
            rank, error = min(worker_exceptions.items(), key=lambda item: item[0])
            happened = dead_workers(worker_exceptions) or f"worker {rank}: {type(error).__name__}: {error}"
            again = f"Starting again: failure {self.count} of {self.allowed} allowed."
            self.terminal.put(("stderr", f"\n{happened}\n{again}\n"))


def dead_workers(failures: dict[int, Exception]) -> str:
    """The workers whose process ended, for reading; empty where each has told what went wrong.

    Beside a dead one the others fail as well, only because it no longer answers.
    """
    return "; ".join(
        f"worker {rank} died (its process was killed, or its node was lost)"
        for rank, error in sorted(failures.items())
        if isinstance(error, WorkerHealthCheckFailedError) and isinstance(error.health_check_failure, RayActorError)
    )


class _Tee(io.TextIOBase):
    """Sends what is written to the user's terminal, and to Ray's log of the worker."""

    # Progress bars are drawn with what it can show.
    encoding = "utf-8"

    def __init__(self, terminal: Queue, name: str, log: TextIO):
        self.terminal, self.name, self.log = terminal, name, log

    def write(self, text: str) -> int:
        self.log.write(text)
        if text:
            self.terminal.put((self.name, text))
        return len(text)

    def flush(self) -> None:
        self.log.flush()

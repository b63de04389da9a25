"""Commands that are run and killed: as forks of a server (`Server`), or as the processes that a user starts."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpt_trl.recipes.profiles import find_profile
from tests.faults.events import Kill
from tests.helpers.processes import ENVIRONMENT, ROOT, free_port

# Seconds after which a run hangs.
PATIENCE = 60.0
# Seconds that the others of a launch have when one of them is gone, until their launcher ends them.
_GRACE = 0.5


@dataclass
class Ended:
    """What a command came to.

    Attributes:
        codes: exit codes of its processes; negative by a signal.
        said: what they printed, errors last.
        printed: what the first of them printed but for errors.
        hung: it was ended because it did not end.
        seconds: wall time.
    """

    codes: list[int]
    said: str
    hung: bool
    seconds: float
    printed: str = ""

    @property
    def code(self) -> int:
        """The first that is not 0."""
        return next((code for code in self.codes if code), 0)


@dataclass
class Running:
    """A job of a server."""

    number: int
    output: str
    began: float
    processes: dict[int, int] = field(default_factory=dict)
    codes: dict[int, int] = field(default_factory=dict)
    told: bool = False

    def signal(self, number: int, *, ranks: Sequence[int] | None = None) -> None:
        """Sends a signal to those of its processes that run, and to all that these have started."""
        for rank, process in self.processes.items():
            if rank not in self.codes and (ranks is None or rank in ranks):
                with suppress(ProcessLookupError):
                    os.killpg(process, number)


class Server:
    """A process, or the processes of a launch, in which commands are run; see `tests.faults.serving`.

    Args:
        folder: for its pipes and what it prints; new.
        profile: of accelerate, in two processes; None for one.
    """

    def __init__(self, folder: Path, profile: str | None = None):
        folder.mkdir(parents=True)
        self.folder, self.size, self._left, self._jobs = folder, 1 if profile is None else 2, b"", 0
        self.running: dict[int, Running] = {}
        names = ["replies", *(f"requests-{rank}" for rank in range(self.size))]
        for name in names:
            os.mkfifo(folder / name)
        command = [sys.executable, "-m"]
        if profile is not None:
            command += ["accelerate.commands.launch", "--config_file", str(find_profile(profile))]
            command += ["--num_processes", "2", "--main_process_port", "0", "-m"]
        command += ["tests.faults.serving", str(folder)]
        # Open for both ways: neither side waits for the other, nor is told that it is gone.
        self._replies = os.open(folder / "replies", os.O_RDWR)
        with open(folder / "output.txt", "w") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=ENVIRONMENT | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._requests = [os.open(folder / f"requests-{rank}", os.O_RDWR) for rank in range(self.size)]

    def close(self) -> None:
        """Ends the server and what still runs in it."""
        for job in self.running.values():
            job.signal(signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in [*self._requests, self._replies]:
            os.close(pipe)

    def begin(
        self,
        words: Sequence[str],
        folder: Path,
        *,
        stop: Mapping[str, Any] | None = None,
        events: Path | None = None,
        control: str | None = None,
    ) -> Running:
        """Begins a command.

        Args:
            folder: in which it runs, and below which its events count.
            stop: what happens at an event: `do` (die, torn, tell, hold) and `event`.
            events: file for the events of the whole run.
            control: name of what it is to be without.
        """
        self._jobs += 1
        number = self._jobs
        output = str(self.folder / f"output-{number}")
        job = {"number": number, "words": list(words), "cwd": str(folder), "watched": str(folder), "output": output}
        job |= {"stop": dict(stop) if stop else None, "events": str(events) if events else None, "control": control}
        job["variables"] = {"MASTER_PORT": str(free_port())}
        started = self.running[number] = Running(number, output, time.monotonic())
        for pipe in self._requests:
            os.write(pipe, (json.dumps(job) + "\n").encode())
        return started

    def ended(self, job: Running, patience: float = PATIENCE) -> Ended:
        """Waits for the end of a job; one that does not end is killed."""
        hung, deadline = False, time.monotonic() + patience
        while len(job.codes) < self.size:
            self._listen(1.0)
            if not job.processes:
                deadline = time.monotonic() + patience
            if any(job.codes.values()) and len(job.codes) < self.size:
                # As the launcher does, which gives an error of the other process the time to be said.
                by_itself = all(code >= 0 for code in job.codes.values())
                self._wait_for_others(job, 8.0 if by_itself else _GRACE)
                job.signal(signal.SIGKILL)
            elif time.monotonic() > deadline:
                hung = True
                job.signal(signal.SIGKILL)
        del self.running[job.number]
        outputs = [Path(f"{job.output}-{rank}.{name}") for name in ("out", "err") for rank in range(self.size)]
        # A process that was killed at once has opened none.
        texts = [path.read_text(errors="replace") if path.exists() else "" for path in outputs]
        for path in outputs:
            path.unlink(missing_ok=True)
        codes = [job.codes[rank] for rank in range(self.size)]
        return Ended(codes, "".join(texts), hung, time.monotonic() - job.began, texts[0])

    def run(self, words: Sequence[str], folder: Path, **settings: Any) -> Ended:
        """Begins a command and waits for its end; see `begin`."""
        return self.ended(self.begin(words, folder, **settings))

    def killed(self, words: Sequence[str], folder: Path, kill: Kill, control: str | None = None) -> Ended:
        """Runs a command that is killed on its way; one that comes to its end before is not."""
        stop = None
        if kill.event is not None:
            do = "tell" if kill.by_parent else "torn" if kill.torn else "die"
            stop = {"event": kill.event, "do": do, "rank": kill.rank}
        job = self.begin(words, folder, stop=stop, control=control)
        if kill.by_parent:
            while not job.codes and not (len(job.processes) == self.size and (job.told or kill.event is None)):
                self._listen(1.0)
            self._sleep(job, kill.delay if kill.event is not None else kill.after)
            job.signal(signal.SIGKILL, ranks=None if kill.everyone else [kill.rank])
        elif kill.everyone and self.size > 1:
            while not job.codes:
                self._listen(1.0)
            job.signal(signal.SIGKILL)
        return self.ended(job)

    def held(self, words: Sequence[str], folder: Path, event: int) -> Running:
        """Begins a command and holds it at an event; `go_on` lets it go."""
        job = self.begin(words, folder, stop={"event": event, "do": "hold"})
        while not job.told and not job.codes:
            self._listen(1.0)
        return job

    def go_on(self, job: Running) -> Ended:
        """Lets a command go that was held, and waits for its end."""
        job.signal(signal.SIGCONT)
        return self.ended(job)

    def _sleep(self, job: Running, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not job.codes:
            self._listen(left)

    def _wait_for_others(self, job: Running, seconds: float) -> None:
        until = time.monotonic() + seconds
        while len(job.codes) < self.size and (left := until - time.monotonic()) > 0:
            self._listen(left)

    def _listen(self, seconds: float) -> None:
        """Takes what the server answers within a time."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the server ended:\n{(self.folder / 'output.txt').read_text()[-3000:]}")
        if not select.select([self._replies], [], [], max(seconds, 0.0))[0]:
            return
        *lines, self._left = (self._left + os.read(self._replies, 65536)).split(b"\n")
        for line in lines:
            said = json.loads(line)
            # Those that were killed may have a word left.
            if (job := self.running.get(said["job"])) is None:
                continue
            if "process" in said:
                # A server takes its time to begin.
                job.began = time.monotonic()
                job.processes[said["rank"]] = said["process"]
            elif "code" in said:
                job.codes[said["rank"]] = said["code"]
            else:
                job.told = True


def command(
    words: Sequence[str],
    folder: Path,
    *,
    after: float | None = None,
    whole_group: bool = True,
    patience: float = 300.0,
    variables: Mapping[str, str] | None = None,
) -> Ended:
    """Runs `hpt-trl` as a user does, with all the processes that it starts.

    Args:
        after: seconds until it is killed; None lets it end.
        whole_group: all that it has started is killed with it, as at the end of a job; else it alone.
        variables: more of its environment.
    """
    began = time.monotonic()
    known = ENVIRONMENT | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", _MARK: str(folder)} | dict(variables or {})
    with open(folder / "output.txt", "w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hpt_trl", *words],
            cwd=folder,
            env=known,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        hung = False
        try:
            process.wait(patience if after is None else after)
        except subprocess.TimeoutExpired:
            hung = after is None
            _kill([process.pid] if after is not None and not whole_group else started_in(folder))
            process.wait()
        except BaseException:
            # The campaign itself is ended.
            _kill(started_in(folder))
            raise
        output.seek(0)
        return Ended([process.returncode], output.read(), hung, time.monotonic() - began)


def _kill(processes: Sequence[int]) -> None:
    for found in processes:
        with suppress(ProcessLookupError):
            os.kill(found, signal.SIGKILL)


# Of the processes that a command starts, whichever group they are in.
_MARK = "HPT_TRL_FAULTS"


def started_in(folder: Path) -> list[int]:
    """The processes that a command in a folder has started and that run."""
    mark, found = f"{_MARK}={folder}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found

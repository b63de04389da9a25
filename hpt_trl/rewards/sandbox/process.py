"""One program's process: started, fed, listened to, watched and ended with all that it started."""

import contextlib
import json
import logging
import os
import secrets
import selectors
import subprocess
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from hpt_trl.rewards.sandbox.interpreters import Interpreter
from hpt_trl.rewards.sandbox.launch import Backend, Launch
from hpt_trl.rewards.sandbox.limits import Limits
from hpt_trl.rewards.sandbox.program import Kept, Outcome, Program, Run, Status, TestResult
from hpt_trl.rewards.sandbox.users import give_back, started_as

logger = logging.getLogger(__name__)

# The harness ends a run at its limit and says so; after so many seconds more it is ended from here.
GRACE = 1.0
# Seconds between two looks at what the processes use, the first after as many. Where looking takes more than a
# twentieth of them, on a machine of many processes, they are up to ten times as long.
EVERY = 0.05
# Resident memory of the harness, and of what isolates it, in MiB.
OWN_MEMORY = 64
_STDERR_CAP = 64 * 1024


def run_process(
    backend: Backend,
    interpreter: Interpreter,
    program: Program,
    limits: Limits,
    stop: threading.Event | None = None,
    kept: Kept | None = None,
) -> Outcome:
    """Runs a program in a sandbox of its own; nothing that it started is left over.

    Args:
        stop: ends the program when set, from another thread.
        kept: what is kept of each of its runs, asked as soon as one is over; by default all that is known of it.
    """
    started = time.monotonic()
    launch = backend.launch(interpreter, limits)
    try:
        return _Process(launch, program, limits, stop, started, kept).run()
    finally:
        if launch.folder is not None:
            try:
                remove(launch.folder)
            except OSError as error:
                logger.warning("the working folder of a program cannot be removed: %s", error)
        if launch.user is not None:
            give_back(launch.user)


class _Process:
    def __init__(
        self,
        launch: Launch,
        program: Program,
        limits: Limits,
        stop: threading.Event | None,
        started: float,
        kept: Kept | None,
    ) -> None:
        self.launch, self.program, self.limits, self.stop, self.started = launch, program, limits, stop, started
        self.until = started + limits.total_seconds(len(program.inputs)) + GRACE
        self.job = memoryview(_job(launch, program, limits))
        self.out, self.err, self.kept = bytearray(), bytearray(), kept
        # The harness's own cap stands before this one; all that it writes is escaped as JSON, at most sixfold.
        self.left = 2**20 + 8 * limits.output_kib * 1024 * len(program.inputs)
        self.why: tuple[Status, str] | None = None
        self.runs: list[Run] = []
        self.results: list[TestResult] = []
        # How the first run ended that did not end well, with what it raised; what kept the harness from its work.
        self.bad: tuple[Status, str] | None = None
        self.fault = ""

    def run(self) -> Outcome:
        words, user = ([], {}) if self.launch.user is None else started_as(self.launch.user)
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [*words, *self.launch.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            start_new_session=True,
            **user,
        )
        try:
            self._converse(process)
        finally:
            _end_all(process, forced=self.why is not None)
            for pipe in (process.stdin, process.stdout, process.stderr):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return self._outcome(process.returncode)

    def _converse(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        watch = _Watch(process.pid, self.launch, self.limits)
        with selectors.DefaultSelector() as selector:
            for pipe in (process.stdin, process.stdout, process.stderr):
                os.set_blocking(pipe.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            selector.register(process.stdout, selectors.EVENT_READ, self.out)
            selector.register(process.stderr, selectors.EVENT_READ, self.err)
            # A program may keep the pipes open after the harness has ended.
            while selector.get_map() and self.why is None:
                # Asked before: what it wrote last is then there to be read.
                over = process.poll() is not None
                ready = selector.select(0 if over else max(0.0, min(watch.next, self.until) - time.monotonic()))
                for key, _ in ready:
                    if key.fileobj is process.stdin:
                        self._feed(selector, process.stdin)
                    elif not self._listen(key.fd, key.data):
                        selector.unregister(key.fileobj)
                if over and not ready:
                    break
                if time.monotonic() > self.until:
                    self.why = "timeout", "ended from outside: it did not answer"
                elif self.stop is not None and self.stop.is_set():
                    self.why = "skipped", "stopped"
                elif time.monotonic() >= watch.next:
                    self.why = self.why or watch.look()

    def _feed(self, selector: selectors.BaseSelector, pipe: Any) -> None:
        try:
            self.job = self.job[os.write(pipe.fileno(), self.job[:65536]) :]
        except BrokenPipeError:
            self.job = self.job[:0]
        if not self.job:
            selector.unregister(pipe)
            pipe.close()

    def _listen(self, descriptor: int, text: bytearray) -> bool:
        data = os.read(descriptor, 65536)
        if text is self.err:
            text += data[: _STDERR_CAP - len(text)]
            return bool(data)
        self.left -= len(data)
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._hear(bytes(text + line))
            text.clear()
        text += rest
        if self.left < 0:
            self.why = "output", "it wrote more than its harness lets through"
        return bool(data)

    def _hear(self, line: bytes) -> None:
        """Takes in one line of the harness's, at once, so that what a program wrote is not held longer than needed."""
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if "fault" in said:
                self.fault = said["fault"]
            elif "test" in said:
                self.results.append(TestResult(said["passed"], said["error"]))
            else:
                run = Run(said["status"], said["returncode"], said["stdout"], said["stderr"], said["cpu"])
                if run.status != "ended":
                    self.bad = self.bad or (run.status, said["raised"])
                self.runs.append(run if self.kept is None else self.kept(len(self.runs), run))

    def _outcome(self, returncode: int) -> Outcome:
        if self.why is not None:
            status, detail = self.why
        elif self.bad is not None:
            status, detail = self.bad
        elif len(self.runs) == len(self.program.inputs):
            status, detail = "ended", ""
        else:
            said = self.fault or self.err.decode("utf-8", "replace").strip()
            status, detail = "killed", f"its process ended with {returncode}" + (f": {said}" if said else "")
        seconds = time.monotonic() - self.started
        return Outcome(status, seconds, tuple(self.runs), tuple(self.results), detail)


def _job(launch: Launch, program: Program, limits: Limits) -> bytes:
    told = {**asdict(program), **launch.job, "limits": asdict(limits), "word": secrets.token_hex(16)}
    return json.dumps(told).encode()


class _Watch:
    """Looks now and then at what no limit of the kernel's counts: sums over processes and folders."""

    def __init__(self, pid: int, launch: Launch, limits: Limits) -> None:
        self.pid, self.launch, self.limits = pid, launch, limits
        self.next = time.monotonic() + EVERY

    def look(self) -> tuple[Status, str] | None:
        """Why the program must be ended, None where it need not."""
        begun = time.monotonic()
        found = self._processes() or self._folders()
        now = time.monotonic()
        self.next = now + min(max(EVERY, 20 * (now - begun)), 10 * EVERY)
        return found

    def _processes(self) -> tuple[Status, str] | None:
        memory = threads = 0
        self.inside = self.pid
        # The top one is the sandbox's own.
        for process in _tree(self.pid)[1:]:
            with contextlib.suppress(psutil.Error):
                memory += process.memory_info().rss
                threads += process.num_threads()
                self.inside = process.pid
        if memory > (self.limits.memory_mib + OWN_MEMORY) * 2**20:
            return "memory", f"its processes together hold {memory >> 20} MiB"
        # The kernel, where it counts them, lets four more through than these.
        if threads > self.limits.processes + 8:
            return "processes", f"it runs {threads} threads"
        return None

    def _folders(self) -> tuple[Status, str] | None:
        files = size = 0
        if self.launch.folder is not None:
            files, size = _use_of(self.launch.folder, self.limits.files)
        for name in self.launch.inner_folders:
            with contextlib.suppress(OSError):
                about = os.statvfs(f"/proc/{self.inside}/root{name}")
                # By its size: a process that is still on its way in sees this machine's folder of that name.
                if about.f_blocks * about.f_frsize == self.limits.folder_mib * 2**20:
                    files += about.f_files - about.f_ffree
        if files > self.limits.files:
            return "files", f"its folder holds {files} files"
        if size > self.limits.folder_mib * 2**20:
            return "files", f"its folder holds {size >> 20} MiB"
        return None


def _use_of(folder: Path, most: int) -> tuple[int, int]:
    """Number and size of the files below a folder, as far as they can be read while they change; at most so many."""
    files = size = 0
    waiting = [str(folder)]
    while waiting and files <= most:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                files += 1
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    # Blocks, for a sparse file takes no room.
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
    return files, size


def remove(folder: Path) -> None:
    """Removes a folder and all in it, which may lie deeper than a path can be long or Python can recurse."""
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Of each folder on the way down: its name, and the folders in it that are yet to be removed.
        way = [("", _without_files(here))]
        while True:
            name, folders = way[-1]
            if folders:
                inner = folders.pop()
                os.chmod(inner, 0o700, dir_fd=here)
                here = _instead(here, os.open(inner, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here))
                way.append((inner, _without_files(here)))
            elif len(way) > 1:
                here = _instead(here, os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here))
                os.rmdir(name, dir_fd=here)
                way.pop()
            else:
                break
    finally:
        os.close(here)
    folder.rmdir()


def _instead(old: int, new: int) -> int:
    os.close(old)
    return new


def _without_files(here: int) -> list[str]:
    """Removes the files of a folder and returns the names of the folders in it."""
    with os.scandir(here) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            os.unlink(name, dir_fd=here)
    return [name for name, is_folder in found if is_folder]


def _tree(pid: int) -> list[psutil.Process]:
    """A process and all below it, from the top down."""
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _end_all(process: "subprocess.Popen[bytes]", *, forced: bool) -> None:
    """Ends the process and everything below it, however fast that forks.

    The top process goes last and mostly by itself: while it lives, what its descendants leave behind comes to it.
    """
    if not forced and _ends_within(process, 0.2):
        return
    seen: set[int] = set()
    idle = 0
    for _ in range(500):
        below = [one for one in _tree(process.pid)[1:] if _is_alive(one)]
        seen |= {one.pid for one in below}
        for one in below:
            with contextlib.suppress(psutil.Error):
                one.suspend()
        for one in below:
            with contextlib.suppress(psutil.Error):
                one.kill()
        # One that is still being started has nothing below it yet.
        idle += not below
        if _ends_within(process, 0.001 if below else 0.1) or idle >= 5:
            break
    if process.returncode is None:
        process.kill()
    process.wait()
    for pid in seen:
        # Where this process is the first of a container, orphans come to it, and nobody else asks how they ended.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _ends_within(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False

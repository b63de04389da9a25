"""The sandboxes of this machine, and what must not be reached from them."""

import contextlib
import ctypes
import functools
import itertools
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from string import Template

import psutil
import pytest

from hpt_trl.rewards.sandbox import users
from hpt_trl.rewards.sandbox.interpreters import interpreters
from hpt_trl.rewards.sandbox.limits import Limits
from hpt_trl.rewards.sandbox.probing import Isolation, backends, probe
from hpt_trl.rewards.sandbox.program import Outcome, Program
from hpt_trl.rewards.sandbox.sandbox import Sandbox

ROOT = Path(__file__).parents[3]
LIMITS = Limits(
    wall_seconds=2.5,
    cpu_seconds=1,
    memory_mib=256,
    processes=16,
    file_mib=8,
    folder_mib=16,
    files=500,
    open_files=64,
    output_kib=64,
)
_PR_SET_CHILD_SUBREAPER = 36
# Of pytest's workers: what the programs of one are run as is no business of another's.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])


NAMES = [backend.name for backend in backends()] if sys.platform == "linux" else []
# A second build of the same sandbox is tried with all programs by `make test-slow`.
SANDBOXES = [
    pytest.param(name, marks=[pytest.mark.slow] if name.split()[0] in [one.split()[0] for one in NAMES[:place]] else [])
    for place, name in enumerate(NAMES)
]


@functools.cache
def isolations() -> dict[str, Isolation]:
    """Every sandbox that passes the probe here; asked in the tests, not where they are collected."""
    found: dict[str, Isolation] = {}
    for backend in backends() if sys.platform == "linux" else []:
        for interpreter in interpreters():
            result = None if backend.refusal() else probe(backend, interpreter)
            if isinstance(result, Isolation):
                found.setdefault(backend.name, result)
    return found


def isolation_of(name: str) -> Isolation:
    if name not in isolations():
        pytest.skip(f"{name} does not pass the probe on this machine")
    return isolations()[name]


@pytest.fixture(params=SANDBOXES)
def each_sandbox(request) -> Sandbox:
    """Each sandbox of this machine in turn."""
    return Sandbox(LIMITS, isolation=isolation_of(request.param))


def sections(name: str) -> dict[str, tuple[str, set[str]]]:
    """The programs of a table: name -> source and the statuses by which it may end (none: any)."""
    found: dict[str, tuple[str, set[str]]] = {}
    text = (Path(__file__).parent / name).read_text()
    for part in text.split("\n=== ")[1:]:
        head, _, code = part.partition("\n")
        title, _, statuses = head.partition(" | ")
        found[title] = (code, set(statuses.split(",")) if statuses else set())
    return found


class Outside:
    """Sockets that listen, a folder with a secret, a process that waits to be killed, and a variable."""

    def __init__(self) -> None:
        self.secret, self.abstract = secrets.token_hex(8), f"hpt-trl-test-{secrets.token_hex(8)}"
        self.folder = Path(tempfile.mkdtemp(prefix="hpt-trl-test-", dir="/var/tmp"))
        self.folder.chmod(0o777)
        (self.folder / "secret").write_text(self.secret)
        (self.folder / "secret").chmod(0o644)
        self.tcp, self.udp = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.file, self.name = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self.tcp.bind(("127.0.0.1", 0))
        self.udp.bind(("127.0.0.1", 0))
        self.file.bind(str(self.folder / "socket"))
        (self.folder / "socket").chmod(0o777)
        self.name.bind("\0" + self.abstract)
        for listening in (self.tcp, self.file, self.name):
            listening.listen()
        for opened in (self.tcp, self.udp, self.file, self.name):
            opened.setblocking(False)
        # Of the user that programs run as, where the tests are root by `outside`: only the sandbox keeps it from harm.
        user = users.FIRST + WORKER if os.geteuid() == 0 else None
        self.canary = subprocess.Popen(["/bin/sleep", "3600"], user=user)
        self.shared = ctypes.CDLL(None).shmget(0, 4096, 0o1666)
        self.variable = f"secret-{secrets.token_hex(8)}"
        os.environ["HPT_TRL_TEST_SECRET"] = self.variable
        self.before, self.canary_before = self._state(), self._canary_state()

    def fill(self, code: str) -> str:
        """A program with what it may attack."""
        return Template(code).safe_substitute(
            TCP=self.tcp.getsockname()[1],
            UDP=self.udp.getsockname()[1],
            ABSTRACT=self.abstract,
            FOLDER=self.folder,
            PID=os.getpid(),
            CANARY=self.canary.pid,
            SHARED=self.shared,
            REPOSITORY=ROOT,
            HOME=os.path.expanduser("~"),
        )

    def harm(self, outcome: Outcome) -> list[str]:
        """What a program did out here, or brought to light."""
        found = []
        for listening in (self.tcp, self.file, self.name):
            try:
                listening.accept()[0].close()
                found.append(f"connected to {listening.getsockname()!r}")
            except BlockingIOError:
                pass
        with contextlib.suppress(BlockingIOError):
            found.append(f"sent {self.udp.recv(100)!r}")
        said = "".join(run.stdout + run.stderr for run in outcome.runs) + outcome.detail
        for secret in (self.secret, self.variable):
            if secret in said:
                found.append("told a secret")
        if self.canary.poll() is not None:
            found.append("killed another process")
        elif self._canary_state() != self.canary_before:
            found.append(f"changed another process: {self._canary_state()} instead of {self.canary_before}")
        if self._state() != self.before:
            found.append(f"changed {self.folder}: {self._state()} instead of {self.before}")
        places = ("/", "/etc", "/usr", "/tmp", "/dev/shm", "/var/tmp", str(ROOT))
        found += [
            f"wrote {place}/{name}"
            for place in places
            for name in ("escaped", "escaped-folder", "left-behind")
            if (Path(place) / name).exists()
        ]
        return found

    def _state(self) -> list[tuple[str, int, int]]:
        paths = [self.folder, *sorted(self.folder.iterdir())]
        stats = [(path.name, path.lstat()) for path in paths]
        return [(name, stat.st_mode, stat.st_mtime_ns) for name, stat in stats]

    def _canary_state(self) -> dict[str, object]:
        """How the process that waits is run, by what another of its user may change."""
        process = psutil.Process(self.canary.pid)
        return {
            "limits": Path(f"/proc/{process.pid}/limits").read_text(),
            "nice": process.nice(),
            "scheduler": os.sched_getscheduler(process.pid),
            "cores": process.cpu_affinity(),
            "io": process.ionice(),
        }

    def close(self) -> None:
        ctypes.CDLL(None).shmctl(self.shared, 0, None)
        self.canary.kill()
        self.canary.wait()
        for opened in (self.tcp, self.udp, self.file, self.name):
            opened.close()
        shutil.rmtree(self.folder)
        del os.environ["HPT_TRL_TEST_SECRET"]


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    """Also makes this process the one that orphans come to, so that none is overlooked, and all users one."""
    control = ctypes.CDLL(None).prctl
    control(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    made, before, users._next = Outside(), users._next, itertools.repeat(WORKER)
    yield made
    made.close()
    users._next = before
    control(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def nothing_left(outside: Outside) -> Iterator[None]:
    def running() -> set[psutil.Process]:
        return {process for process in psutil.Process().children(recursive=True) if process.is_running()}

    before = running()
    yield
    until = time.monotonic() + 1
    while (left := running() - before) and time.monotonic() < until:
        time.sleep(0.01)
    said = [(process.pid, process.name(), process.status()) for process in left]
    for process in left:
        process.kill()
    assert not said, f"left over: {said}"


@pytest.fixture(scope="session")
def good_program() -> Program:
    return Program("import math\nprint(math.factorial(int(input())))", inputs=("5",))

"""Which sandbox works on this machine: found by running a probe in it that tries to get out.

Whether a program is installed says little: a container may forbid namespaces, a kernel may lack Landlock, and a tool
may start and still leave the file system open.
"""

import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.rewards.sandbox.bubblewrap import bubblewraps
from hpt_trl.rewards.sandbox.interpreters import Interpreter, interpreters
from hpt_trl.rewards.sandbox.landlock import Landlock
from hpt_trl.rewards.sandbox.launch import Backend, environment, system_folders
from hpt_trl.rewards.sandbox.limits import Limits
from hpt_trl.rewards.sandbox.process import run_process
from hpt_trl.rewards.sandbox.program import Program
from hpt_trl.rewards.sandbox.unprotected import Unprotected

_PROBE = Path(__file__).with_name("probe.py")
_LIMITS = Limits(wall_seconds=20, cpu_seconds=10, memory_mib=256, processes=8)
# What the shell or the interpreter adds to an empty environment.
_ADDED = ("PWD", "LC_CTYPE", "_", "SHLVL")
_ADVICE = (
    "Install bubblewrap (`apt-get install bubblewrap`, or what your distribution calls it) or "
    "`pip install 'hpt-trl[sandbox]'`. In a container bubblewrap needs user namespaces (`docker run --security-opt "
    "seccomp=unconfined`), and the package needs Linux 6.12; on macOS or Windows run in a Linux container."
)


@dataclass(frozen=True)
class Isolation:
    """A backend and an interpreter that passed the probe together.

    Attributes:
        version: of the interpreter.
        protects: whether it isolates anything.
    """

    backend: Backend
    interpreter: Interpreter
    version: str
    protects: bool = True

    def __str__(self) -> str:
        return f"{self.backend.name}, Python {self.version} ({self.interpreter.path})"


def backends() -> list[Backend]:
    """Those that isolate, in the order in which they are tried."""
    return [*bubblewraps(), Landlock()]


def homes() -> list[str]:
    """The folders in which homes are, and this user's own where it is no folder of the system, as in a container."""
    own = Path(os.path.expanduser("~"))
    shown = ("/dev", "/proc", *(name for name, _ in system_folders()))
    private = own.is_absolute() and own != Path("/") and not any(own.is_relative_to(name) for name in shown)
    return sorted({"/root", "/home", *([str(own)] if private else [])})


def probe(backend: Backend, interpreter: Interpreter) -> Isolation | list[str]:
    """Tries a backend with an interpreter.

    Returns:
        The two together, or what is wrong with them, a line each.
    """
    with ExitStack() as stack:
        outside = _Outside(stack, interpreter)
        program = Program(_PROBE.read_text(encoding="utf-8"), inputs=(json.dumps(outside.told),))
        try:
            outcome = run_process(backend, interpreter, program, _LIMITS)
        except OSError as error:
            return [f"it cannot be started: {error}"]
        faults = outside.harm()
    try:
        said = json.loads(outcome.stdout)
    except ValueError:
        return [_first_line(outcome.detail or outcome.stderr) or f"the probe ended by: {outcome.status}"]
    faults += [f"{name}: {how}" for name, how in said["found"].items()]
    return faults or Isolation(backend, interpreter, said["version"])


class _Outside:
    """What a program must not reach: sockets that listen, a file that anyone may read, a folder open to all."""

    def __init__(self, stack: ExitStack, interpreter: Interpreter) -> None:
        # Not in /tmp, which may be the name of a folder inside as well.
        place = next((name for name in ("/var/tmp", "/dev/shm") if os.access(name, os.W_OK)), None)
        self.folder = Path(tempfile.mkdtemp(prefix="hpt-trl-probe-", dir=place))
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.chmod(0o777)
        (self.folder / "secret").write_text("secret")
        (self.folder / "secret").chmod(0o644)
        abstract = f"hpt-trl-{secrets.token_hex(8)}"
        self.sockets = [
            self._listening(stack, socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            self._listening(stack, socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            self._listening(stack, socket.AF_UNIX, socket.SOCK_STREAM, "\0" + abstract),
            self._listening(stack, socket.AF_UNIX, socket.SOCK_STREAM, str(self.folder / "socket")),
        ]
        (self.folder / "socket").chmod(0o777)
        self.told = {
            "tcp": self.sockets[0].getsockname()[1],
            "udp": self.sockets[1].getsockname()[1],
            "abstract": abstract,
            "folder": str(self.folder),
            "pid": os.getpid(),
            "homes": homes(),
            "interpreter": interpreter.folders,
            "memory": _LIMITS.memory_mib * 2**20,
            "processes": _LIMITS.processes,
            "environment": [*environment(""), *_ADDED],
        }

    @staticmethod
    def _listening(stack: ExitStack, family: int, kind: int, address: Any) -> socket.socket:
        opened = stack.enter_context(socket.socket(family, kind))
        opened.bind(address)
        opened.setblocking(False)
        if kind == socket.SOCK_STREAM:
            opened.listen()
        return opened

    def harm(self) -> list[str]:
        """What happened out here."""
        done = []
        for opened in self.sockets:
            try:
                opened.accept()[0].close() if opened.type == socket.SOCK_STREAM else opened.recv(16)
            except OSError:
                continue
            done.append(f"network: something arrived at {opened.getsockname()!r}")
        if (self.folder / "written").exists():
            done.append(f"writing: it wrote {self.folder / 'written'}")
        return done


_lock = threading.Lock()
_found: dict[bool, Isolation | str] = {}


def find_isolation(*, unprotected: bool = False) -> Isolation:
    """The first backend and interpreter that pass the probe; asked once in each process.

    Args:
        unprotected: where none does, run programs without isolation rather than raise.

    Raises:
        UserError: none does. The message has a line for each that was tried, with what is wrong, and what to install.
    """
    with _lock:
        if unprotected not in _found:
            _found[unprotected] = _search(unprotected)
        found = _found[unprotected]
    if isinstance(found, str):
        raise UserError(found)
    return found


def _search(unprotected: bool) -> Isolation | str:
    said = []
    candidates = interpreters()
    for backend in backends() if sys.platform == "linux" else []:
        if refusal := backend.refusal():
            said.append(f"{backend.name}: {refusal}")
            continue
        for interpreter in candidates:
            result = probe(backend, interpreter)
            if isinstance(result, Isolation):
                return result
            said.append(f"{backend.name}, {interpreter.path}: {'; '.join(result)}")
    if sys.platform != "linux":
        said.append(f"{sys.platform} has neither namespaces nor Landlock")
    elif not bubblewraps():
        said.insert(0, "bubblewrap: not installed")
    if unprotected and sys.platform == "linux":
        for interpreter in candidates:
            hello = run_process(
                Unprotected(), interpreter, Program("import sys; print(sys.version.split()[0])"), _LIMITS
            )
            if hello.status == "ended":
                return Isolation(Unprotected(), interpreter, hello.stdout.strip(), protects=False)
            said.append(f"no sandbox, {interpreter.path}: {_first_line(hello.detail or hello.stderr)}")
    lines = "".join(f"\n  {line}" for line in said)
    return f"no sandbox can be set up on this machine, and programs are not run without one:{lines}\n{_ADVICE}"


def _first_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""

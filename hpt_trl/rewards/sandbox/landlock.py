"""Isolation by Landlock and seccomp, through the package sandlock; needs no namespaces, and Linux 6.12.

A program sees this machine's file system and may read the system's folders of programs and libraries in it, and write
into an empty folder that is removed after. It may make no socket, and signal none but its own processes. /proc is
closed to it, and so is /dev/shm, without which `multiprocessing` has pipes but no locks.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from hpt_trl.rewards.sandbox.interpreters import Interpreter
from hpt_trl.rewards.sandbox.launch import Launch, system_folders
from hpt_trl.rewards.sandbox.limits import Limits
from hpt_trl.rewards.sandbox.supervised import supervised, working_folder
from hpt_trl.rewards.sandbox.syscalls import filter_program, filtered_machine

_READABLE = ("/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@contextlib.contextmanager
def _home() -> Iterator[None]:
    """A home folder for sandlock's import, which asks for one, where a container's user has none."""
    missing = os.path.expanduser("~") == "~"
    if missing:
        os.environ["HOME"] = "/"
    try:
        yield
    finally:
        if missing:
            del os.environ["HOME"]


@dataclass(frozen=True)
class Landlock:
    """The backend over sandlock."""

    name: str = "Landlock (sandlock)"

    def refusal(self) -> str | None:
        if filtered_machine() is None:
            return "the filter of system calls knows x86_64 and aarch64 alone"
        try:
            with _home():
                from sandlock import landlock_abi_version, min_landlock_abi
        except (ImportError, OSError) as error:
            return f"sandlock cannot be imported: {error}"
        found, needed = landlock_abi_version(), min_landlock_abi()
        if found < needed:
            return f"the kernel has Landlock's ABI {found}, and {needed} is needed (Linux 6.12)"
        return None

    def launch(self, interpreter: Interpreter, limits: Limits) -> Launch:
        folder, user = working_folder()
        readable = [name for name, _ in system_folders()] + [*_READABLE, *interpreter.folders]
        arguments = {
            "fs_readable": [name for name in readable if os.path.exists(name)],
            "fs_writable": [str(folder), "/dev/null"],
            # Threads do not count here: where the kernel cannot count them for a user of its own, the watch does.
            "max_processes": limits.processes + 4,
        }
        machine = filtered_machine()
        assert machine is not None
        job: dict[str, object] = {
            "filter": filter_program(machine, own_files=False).hex(),
            # sandlock has to read what its child asks for; ptrace is filtered and /proc is closed.
            "hidden": False,
            "counts_processes": user is not None,
        }
        return supervised(interpreter, folder, user, arguments, job)

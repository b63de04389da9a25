"""The Python interpreters that may run programs.

The one that runs this package is tried first, without the packages of its virtual environment. It often lies in a home
folder that another user cannot enter; then the system's own has to do.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Interpreter:
    """An interpreter.

    Attributes:
        path: of the executable, links resolved.
        folders: what it needs outside of the system's folders.
    """

    path: str
    folders: tuple[str, ...] = ()


def interpreters() -> list[Interpreter]:
    """The interpreters of this machine, in the order in which they are tried."""
    prefix = Path(sys.base_prefix).resolve()
    running = Path(sys.executable).resolve()
    if not running.is_relative_to(prefix):
        # A copy inside of a virtual environment.
        running = prefix / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = [Interpreter(str(running), () if _is_system(prefix) else (str(prefix),))]
    found += [Interpreter(os.path.realpath(path)) for path in ("/usr/bin/python3", "/usr/local/bin/python3")]
    return [one for one in dict.fromkeys(found) if Path(one.path).exists()]


def _is_system(prefix: Path) -> bool:
    return prefix.is_relative_to("/usr") or str(prefix) in ("/", os.path.expanduser("~"))

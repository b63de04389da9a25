"""What the backends without namespaces share: a folder of this machine, and the process that ends what is left."""

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hpt_trl.rewards.sandbox.interpreters import Interpreter
from hpt_trl.rewards.sandbox.launch import FLAGS, Launch, environment, harness
from hpt_trl.rewards.sandbox.users import take_user

_SUPERVISOR = Path(__file__).with_name("supervisor.py")


def working_folder() -> tuple[Path, int | None]:
    """A new empty folder for a program, and the user that it belongs to."""
    folder, user = Path(tempfile.mkdtemp(prefix="hpt-trl-")), take_user()
    if user is not None:
        os.chown(folder, user, user)
    return folder, user


def supervised(
    interpreter: Interpreter, folder: Path, user: int | None, sandlock: dict[str, Any] | None, job: dict[str, object]
) -> Launch:
    """A launch below the supervisor.

    Args:
        sandlock: arguments of `sandlock.Sandbox`; None for no isolation.
    """
    told = {
        "command": [interpreter.path, *FLAGS, "-c", harness()],
        "environment": environment(str(folder)),
        "folder": str(folder),
        "sandlock": sandlock,
        "path": _package_folders(),
        "user": user,
    }
    # -I and -S: nothing but the two packages is imported. As this process's user until these are loaded, for they may
    # lie in a home folder.
    start = [sys.executable, "-I", "-S", "-B", str(_SUPERVISOR), json.dumps(told)]
    return Launch(start, folder=folder, job=job)


def _package_folders() -> list[str]:
    found = [importlib.util.find_spec(name) for name in ("psutil", "sandlock")]
    return sorted({str(Path(spec.origin).parents[1]) for spec in found if spec is not None and spec.origin})

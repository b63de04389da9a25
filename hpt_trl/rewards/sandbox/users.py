"""The user that programs run as where this process is root.

Root is subject to no limit on processes, so a program takes another user's id before anything else; each its own, as
the kernel counts processes by user.
"""

import functools
import itertools
import os
import shutil
import subprocess
from typing import Any

# Ids that systemd's list of reserved ranges leaves unused, and that a container which maps 65,536 ids knows.
FIRST, COUNT = 60_578, 606

_next = itertools.count(os.getpid())


def next_user() -> int | None:
    """The uid and gid for one more program; None where this process is not root and stays who it is."""
    return FIRST + next(_next) % COUNT if os.geteuid() == 0 else None


def started_as(user: int) -> tuple[list[str], dict[str, Any]]:
    """How a process takes a user's id: words before its command, and arguments of `Popen`.

    By util-linux' `setpriv` where that works: Python would copy the page tables of this whole process to do it, which
    takes 0.4 seconds for a process of 3 GiB.
    """
    if setpriv := _setpriv():
        return [setpriv, f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"], {}
    return [], {"user": user, "group": user, "extra_groups": []}


@functools.cache
def _setpriv() -> str | None:
    path = shutil.which("setpriv")
    if path is None:
        return None
    command = [path, f"--reuid={FIRST}", f"--regid={FIRST}", "--clear-groups", "--", "id", "-u"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return path if done.stdout.strip() == str(FIRST) else None

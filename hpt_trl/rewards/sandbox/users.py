"""The user that programs run as where this process is root.

Root is subject to no limit on processes, so a program takes another user's id before anything else; each its own, as
the kernel counts processes by user: of two programs of one user, one that forks without end would leave the other none.
"""

import functools
import itertools
import os
import shutil
import socket
import subprocess
from typing import Any

# Ids that systemd's list of reserved ranges leaves unused, and that a container which maps 65,536 ids knows.
FIRST, COUNT = 60_578, 606

_next = itertools.count(os.getpid())
# By user: a name that no two processes can hold at once, and that ends with the one that does. Linux keeps these names
# by network namespace, so containers do not see each other's.
_marks: dict[int, socket.socket] = {}


def take_user() -> int | None:
    """The uid and gid for one more program, which no other has, of whichever run beside this one.

    Returns:
        None where this process is not root and stays who it is.
    """
    if os.geteuid() != 0:
        return None
    for _ in range(COUNT):
        user = FIRST + next(_next) % COUNT
        mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            mark.bind(f"\0hpt-trl-program-{user}")
        except OSError:
            mark.close()
        else:
            _marks[user] = mark
            return user
    # More programs at once than users: two share one.
    return FIRST + next(_next) % COUNT


def give_back(user: int) -> None:
    """Let another program have a user; all processes of the one before have ended."""
    if mark := _marks.pop(user, None):
        mark.close()


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

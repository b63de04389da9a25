"""The user that programs run as where this process is root.

Root is subject to no limit on processes, so a program takes another user's id before anything else; each its own, as
the kernel counts processes by user.
"""

import itertools
import os

# Ids that systemd's list of reserved ranges leaves unused, and that a container which maps 65,536 ids knows.
FIRST, COUNT = 60_578, 606

_next = itertools.count(os.getpid())


def next_user() -> int | None:
    """The uid and gid for one more program; None where this process is not root and stays who it is."""
    return FIRST + next(_next) % COUNT if os.geteuid() == 0 else None

"""Python's garbage collector in the process of a command.

Importing torch, Transformers and TRL makes half a million objects that stay. By its usual rules the collector goes
through them again and again while they come, a quarter of the time that the imports take, and once more in each full
collection of a training.
"""

import gc

_USUAL = gc.get_threshold()
# A few looks on the way, for a command that never gets to `collect_as_usual`.
_SELDOM = (100_000, 20, 20)


def collect_seldom() -> None:
    """While a command starts; for a process that runs nothing else."""
    gc.set_threshold(*_SELDOM)


def collect_as_usual() -> None:
    """From now on by the usual rules, but for what has been imported; nothing changes where these were never left."""
    if gc.get_threshold() == _SELDOM:
        gc.freeze()
        gc.set_threshold(*_USUAL)

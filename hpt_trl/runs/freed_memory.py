"""The C library's allocator in the process of a run on CPUs.

By its usual rules a large tensor's memory goes back to the system as soon as it is freed. A training frees its
gradients at each optimizer step, and whatever takes their place has its pages mapped and cleared anew.
"""

import ctypes
import os
import platform

# Of `mallopt`: from how many free bytes on some are given back, -1 for never; how many blocks may stand apart.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Have freed memory stay with this process for what comes next.

    Returns:
        Whether it does: with glibc alone, and unless the environment says something about its allocator.
    """
    told = any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ)
    if told or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))

"""Freed memory that stays with a run on CPUs."""

import platform
import subprocess
import sys

import pytest

from tests.helpers.processes import ENVIRONMENT

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")

# A tensor of 25,600 pages is made and freed again and again: how many of them are mapped anew in the last five times.
# The first times may each find another place.
MAPPED_AGAIN = """
import resource, torch
for turn in range(25):
    if turn == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(100 * 2**18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def mapped_again(code: str, **said: str) -> int:
    clean = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", code + MAPPED_AGAIN], capture_output=True, text=True, env=clean | said, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def test_a_run_keeps_what_it_has_freed(recipe):
    assert mapped_again("") > 100_000
    path = recipe("sft", max_steps=1)
    assert mapped_again(f"from hpt_trl.runs import runner; runner.run({path!r}, [])") < 2_000


@pytest.mark.parametrize(
    "said", [{"MALLOC_MMAP_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}]
)
def test_what_the_environment_says_stands(said):
    keep = "from hpt_trl.runs.freed_memory import keep_freed_memory; print(keep_freed_memory())"
    assert mapped_again(keep, **said) > 100_000

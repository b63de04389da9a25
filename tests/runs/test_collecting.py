"""The garbage collector of a command's process: seldom while it starts, as usual from the training on."""

import gc
import json
import subprocess
import sys

from hpt_trl.runs import runner
from hpt_trl.runs.collecting import collect_as_usual, collect_seldom
from tests.helpers.processes import ENVIRONMENT

# What a process prints of itself.
STATE = "import gc, json; print(json.dumps([gc.get_threshold(), gc.get_freeze_count()]))"


def state_after(code: str) -> tuple[list[int], int]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def test_imports_are_spared_by_a_command_alone():
    usual, none = state_after(f"from hpt_trl.runs.collecting import *; collect_as_usual(); {STATE}")
    assert none == 0
    seldom, none = state_after(
        f"import atexit, sys; atexit.register(lambda: exec({STATE!r})); sys.argv = ['hpt-trl', 'list']; "
        "from hpt_trl.cli import command; command()"
    )
    assert none == 0 and seldom[0] > 10 * usual[0]
    found, kept = state_after(f"from hpt_trl.runs.collecting import *; collect_seldom(); collect_as_usual(); {STATE}")
    assert found == usual and kept > 0


def test_a_process_of_ones_own_keeps_its_rules():
    before = gc.get_threshold()
    collect_as_usual()
    assert gc.get_threshold() == before


def test_a_run_ends_the_sparing_of_its_start(recipe):
    usual = gc.get_threshold()
    collect_seldom()
    try:
        runner.run(recipe("sft", max_steps=1), [])
        assert gc.get_threshold() == usual
    finally:
        gc.set_threshold(*usual)

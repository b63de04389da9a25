"""Programs that try to get out, on every sandbox that works on this machine."""

import sys

import pytest

from hpt_trl.rewards.sandbox.process import GRACE
from hpt_trl.rewards.sandbox.program import Program
from tests.rewards.sandbox.conftest import LIMITS, isolations, sections

ESCAPES, FAKES = sections("escapes.txt"), sections("fakes.txt")
TESTS = (
    "assert f(2) == 4",
    "import math\nassert math.isclose(f(3), 9)\ndone = True",
    "assert abs(f(-1) - 1) == 0 and all([f(5) == 25])",
    "answers = f(4), f(5)\nassert Counter(answers) == Counter([16, 25])",
)
# No program can make it, and a right one fails at it.
MISSING = "from no_such_module import same\nassert same(f(2), 4)"
ASKED = {"setup": "from collections import Counter", "imports": ("math", "collections", "no_such_module")}


def test_a_sandbox_works_here():
    if sys.platform != "linux":
        pytest.skip("there is none but on Linux")
    assert isolations(), "no sandbox works here: install bubblewrap, or what requirements.txt names"
    assert len(ESCAPES) >= 40


@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_gets_out(each_sandbox, name, outside, nothing_left, good_program):
    code, statuses = ESCAPES[name]
    outcome = each_sandbox.run(Program(outside.fill(code)))
    assert "ESCAPED" not in outcome.stdout, outcome
    assert not (harm := outside.harm(outcome)), (harm, outcome)
    # Starting and ending the processes takes its time on a busy machine.
    assert outcome.seconds < LIMITS.wall_seconds + GRACE + 1.5, outcome
    assert not statuses or outcome.status in statuses, outcome
    assert len(outcome.stdout) + len(outcome.stderr) <= 2 * LIMITS.output_kib * 1024
    # And the next program runs as if nothing had been.
    good = each_sandbox.run(good_program)
    assert (good.status, good.stdout) == ("ended", "120\n"), good


@pytest.mark.parametrize("name", FAKES)
def test_no_wrong_program_passes(each_sandbox, name, outside, nothing_left):
    outcome = each_sandbox.run(Program(FAKES[name][0], tests=(*TESTS, MISSING), keeps="f", **ASKED))
    passed = [result.passed for result in outcome.results]
    assert not any(passed) and len(passed) <= len(TESTS) + 1, outcome


def test_a_right_program_passes(each_sandbox):
    outcome = each_sandbox.run(Program("def f(x):\n    return x * x", tests=(*TESTS, MISSING), **ASKED))
    assert outcome.status == "ended" and [result.passed for result in outcome.results] == [True] * 4 + [False]

"""Programs in the sandbox: how they end, what is told of them, several at once."""

import contextlib
import dataclasses
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import types
from pathlib import Path

import psutil
import pytest

from hpt_trl.errors import UserError
from hpt_trl.rewards.sandbox import users
from hpt_trl.rewards.sandbox.bubblewrap import Bubblewrap
from hpt_trl.rewards.sandbox.limits import Limits
from hpt_trl.rewards.sandbox.program import Kept, Outcome, Program, Run
from hpt_trl.rewards.sandbox.sandbox import Sandbox
from tests.helpers.processes import ENVIRONMENT
from tests.rewards.sandbox.conftest import LIMITS, NAMES, isolation_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no sandbox but on Linux")


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(LIMITS)


@pytest.mark.parametrize(
    ("code", "status", "returncode"),
    [
        ("print('x')", "ended", 0),
        ("import sys\nsys.exit()", "ended", 0),
        ("import sys\nsys.exit(3)", "error", 3),
        ("import sys\nsys.exit('no')", "error", 1),
        ("1 / 0", "error", 1),
        ("this is no program", "error", 1),
        ("import os\nos._exit(4)", "error", 4),
        ("import os\nos.kill(os.getpid(), 11)", "killed", -11),
        ("x = 'x' * 10**9", "memory", 1),
        ("raise KeyboardInterrupt", "error", 1),
        ("raise MemoryError", "memory", 1),
    ],
)
def test_how_programs_end(sandbox, code, status, returncode):
    outcome = sandbox.run(Program(code))
    assert (outcome.status, outcome.returncode) == (status, returncode), outcome


def test_processor_time_ends_a_loop_before_the_wall_clock(sandbox):
    slow = Sandbox(dataclasses.replace(LIMITS, wall_seconds=60), isolation=sandbox.isolation)
    outcome = slow.run(Program("print('begun', flush=True)\nwhile True: pass"))
    assert outcome.status == "timeout" and outcome.stdout == "begun\n"
    assert 0.8 < outcome.runs[0].cpu_seconds < 1.5 and outcome.seconds < 30


def test_what_went_wrong_is_told(sandbox):
    outcome = sandbox.run(Program("def f():\n    return 1 / 0\nprint('before')\nf()"))
    assert outcome.detail == "ZeroDivisionError: division by zero"
    assert outcome.stdout == "before\n" and "line 2, in f" in outcome.stderr
    outcome = sandbox.run(Program("print('ä€\\udc80')\nimport sys\nsys.stdout.buffer.write(b'\\xff')"))
    assert outcome.status == "ended" and "ä€" in outcome.stdout


def test_a_script_is_run_as_one(sandbox):
    code = """
import atexit, sys, threading, time
from dataclasses import dataclass
atexit.register(print, "at the end")
@dataclass
class Point:
    x: "int"
def main():
    time.sleep(0.1)
    print(Point(int(sys.stdin.readline())), [*map(int, sys.stdin.read().split())])
if __name__ == "__main__":
    sys.setrecursionlimit(10**6)
    threading.stack_size(2**26)
    threading.Thread(target=main).start()
"""
    outcome = sandbox.run(Program(code, inputs=("1\n2 3\n4", "5\n")))
    assert [run.stdout for run in outcome.runs] == ["Point(x=1) [2, 3, 4]\nat the end\n", "Point(x=5) []\nat the end\n"]


def test_input_larger_than_a_pipe_and_output_up_to_the_limit(sandbox):
    text = "1234567\n" * 40_000
    outcome = sandbox.run(Program("import sys\nprint(len(sys.stdin.read()))\nprint('x' * 60000)", inputs=(text,)))
    assert outcome.stdout == f"{len(text)}\n" + "x" * 60000 + "\n"
    # One that reads nothing of it ends all the same.
    assert sandbox.run(Program("print(1)", inputs=(text,))).stdout == "1\n"


def test_each_run_has_its_own_limits_and_the_others_go_on(sandbox):
    code = "n = int(input())\nwhile n == 1: pass\nif n == 2: 1 / 0\nif n == 3: print('x' * 10**6)\nprint(n)"
    outcome = sandbox.run(Program(code, inputs=("0", "1", "2", "3", "4")))
    assert [run.status for run in outcome.runs] == ["ended", "timeout", "error", "output", "ended"]
    assert outcome.runs[0].stdout == "0\n" and outcome.runs[4].stdout == "4\n" and outcome.status == "timeout"


def test_tests_are_told_one_by_one(sandbox):
    code = "import time\ndef f(x):\n    while x == 3: pass\n    return x * x"
    tests = ("assert f(1) == 1", "assert f(2) == 5, 'not five'", "assert f(4) == 16", "assert f(3)", "assert f(1)")
    outcome = sandbox.run(Program(code, tests=tests))
    assert outcome.status == "timeout"
    assert [result.passed for result in outcome.results] == [True, False, True]
    assert outcome.results[1].error == "AssertionError: not five"


def test_tests_see_the_program_its_setup_and_each_other(sandbox):
    program = Program(
        "def f(p):\n    return p.x + SHIFT",
        setup="class Point:\n    x = 2\nSHIFT = 3",
        tests=("y = f(Point())\nassert y == 5", "assert y == 5", "assert f(missing)", "this is no test", "assert y"),
    )
    outcome = sandbox.run(program)
    assert [result.passed for result in outcome.results] == [True, True, False, False, True], outcome
    assert "NameError" in outcome.results[2].error and "SyntaxError" in outcome.results[3].error


def test_a_name_that_hides_a_builtin_is_seen_by_tests_only_where_asked_for(sandbox):
    code = "def sum(a, b):\n    return a - b"
    for keeps, passed in (("sum", True), (None, False)):
        outcome = sandbox.run(Program(code, tests=("assert sum(3, 2) == 1",), keeps=keeps))
        assert [result.passed for result in outcome.results] == [passed]


def test_the_same_program_does_the_same_each_time(sandbox):
    program = Program("print([*{'a', 'b', 'c', 'd', 'e', 'f'}], hash('x'))")
    assert len({sandbox.run(program).stdout for _ in range(3)}) == 1


def test_what_a_program_finds(sandbox):
    code = "import os, sys\nprint(os.listdir(), sys.argv, os.getcwd() == os.environ['HOME'], os.environ.get('USER'))"
    assert sandbox.run(Program(code)).stdout == "[] ['program.py'] True None\n"


class Counting(Sandbox):
    """Counts the runs of each program, and how many ran at once."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.runs: list[Program] = []
        self.now = self.most = 0
        self.lock = threading.Lock()

    def _run(self, program: Program, stop: threading.Event | None, kept: Kept | None = None) -> Outcome:
        with self.lock:
            self.runs.append(program)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return super()._run(program, stop, kept)
        finally:
            with self.lock:
                self.now -= 1


def test_several_at_once_in_order(sandbox, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    counting = Counting(LIMITS, isolation=sandbox.isolation)
    programs = [Program(f"import time\ntime.sleep({0.4 - 0.05 * n})\nprint({n})") for n in range(7)]
    assert [outcome.stdout for outcome in counting.run_all(programs)] == [f"{n}\n" for n in range(7)]
    assert counting.most == 3
    assert (counting.workers(2), counting.workers(8)) == (2, 3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert counting.workers() == 1
    assert counting.run_all([]) == []


def test_what_the_wall_clock_ended_is_run_once_more_alone(sandbox, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    counting = Counting(LIMITS, isolation=sandbox.isolation)
    sleeping, looping, good = Program("import time\ntime.sleep(60)"), Program("while True: pass"), Program("print(1)")
    outcomes = counting.run_all([sleeping, good])
    assert [outcome.status for outcome in outcomes] == ["timeout", "ended"]
    assert [counting.runs.count(program) for program in (sleeping, good)] == [2, 1]
    assert counting.runs[-1] is sleeping
    # One that has used up its processor time is not late.
    counting.limits = dataclasses.replace(LIMITS, wall_seconds=60)
    outcomes = counting.run_all([looping, good])
    assert [outcome.status for outcome in outcomes] == ["timeout", "ended"] and counting.runs.count(looping) == 1


def test_those_run_once_more_have_a_bound(sandbox, monkeypatch, caplog):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(24)))
    limits = dataclasses.replace(LIMITS, wall_seconds=0.1)
    counting = Counting(limits, isolation=sandbox.isolation)
    sleeping = [Program(f"import time\ntime.sleep({60 + n})") for n in range(24)]
    outcomes = counting.run_all(sleeping)
    assert {outcome.status for outcome in outcomes} == {"timeout"}
    # Each takes the limit at least, and there is time for ten or for what the first runs took.
    assert 25 <= len(counting.runs) < 48
    assert f"{48 - len(counting.runs)} of 24 programs that the wall clock ended were not run once more" in caplog.text


def test_what_programs_write_is_looked_at_as_they_end_and_not_kept(sandbox):
    """Peaks of memory in this process, and that a failed run keeps no more than what is shown of it."""
    big = Program("print('\\x01' * 2**19)\nn = input()\nif n == '1': print('x' * 2**20)", inputs=("0", "1") * 6)
    limits = dataclasses.replace(LIMITS, output_kib=1024)
    seen = []

    def kept(number: int, run: Run) -> Run:
        seen.append((number, run.status, len(run.stdout)))
        return dataclasses.replace(run, stdout="", passed=True)

    tracemalloc.start()
    (outcome,) = Sandbox(limits, isolation=sandbox.isolation).run_all([big], kept=[kept])
    # Of one run what it wrote, that in JSON, where each character takes six, and copies of it.
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()
    assert seen == [(n, "output", 4096) if n % 2 else (n, "ended", 2**19 + 1) for n in range(12)]
    assert all(run.stdout == "" and run.passed for run in outcome.runs) and outcome.status == "output"


def test_all_together_have_a_time(sandbox):
    programs = [Program("while True: pass")] + [Program(f"print({n})") for n in range(3)]
    outcomes = sandbox.run_all(programs, workers=1, seconds=0.5)
    assert [outcome.status for outcome in outcomes] == ["timeout", "skipped", "skipped", "skipped"]
    assert "no time left" in outcomes[1].detail


def test_a_sandbox_that_works_no_longer_is_no_wrong_answer(sandbox):
    broken = dataclasses.replace(sandbox.isolation, backend=Bubblewrap("/bin/false"))
    with pytest.raises(UserError, match=r"works no longer: of 2 programs 2 ended without a report.*ended with 1"):
        Sandbox(LIMITS, isolation=broken).run_all([Program("print(1)"), Program("print(2)")])


def test_an_interrupt_ends_the_programs(sandbox, nothing_left, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    slow = Sandbox(dataclasses.replace(LIMITS, wall_seconds=60), isolation=sandbox.isolation)

    class Interrupted(Sandbox):
        def _run(self, program: Program, stop: threading.Event | None, kept: Kept | None = None) -> Outcome:
            if program.code == "interrupt":
                time.sleep(0.5)
                raise KeyboardInterrupt
            return super()._run(program, stop, kept)

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Interrupted(slow.limits, isolation=slow.isolation).run_all(
            [Program("interrupt"), Program("import time\ntime.sleep(50)"), Program("import time\ntime.sleep(50)")]
        )
    assert time.monotonic() - begun < 10


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")
@pytest.mark.parametrize("setpriv", [True, False])
def test_root_runs_no_program_as_itself(sandbox, monkeypatch, setpriv):
    if not setpriv:
        monkeypatch.setattr(users, "_setpriv", lambda: None)
    elif users._setpriv() is None:
        pytest.skip("there is no setpriv that changes the user")
    seen = []
    before = sandbox.isolation.backend.launch

    def launch(*arguments):
        seen.append(before(*arguments))
        return seen[-1]

    backend = types.SimpleNamespace(name="seen", refusal=lambda: None, launch=launch)
    seeing = Sandbox(LIMITS, isolation=dataclasses.replace(sandbox.isolation, backend=backend))
    done = threading.Thread(target=seeing.run, args=(Program("import time\ntime.sleep(1)"),))
    done.start()
    owners: set[int] = set()
    while done.is_alive():
        for process in psutil.Process().children(recursive=True):
            # As seen from outside; inside every program is the same nobody.
            with contextlib.suppress(psutil.Error):
                if "_compiled" in " ".join(process.cmdline()) and process.ppid() != os.getpid():
                    owners.add(process.uids().real)
        time.sleep(0.02)
    done.join()
    assert seen[0].user not in users._marks
    assert owners == {seen[0].user} and users.FIRST <= seen[0].user < users.FIRST + users.COUNT


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")
def test_no_two_programs_have_one_user(monkeypatch):
    # Of another run, which begins to count at the same one.
    code = "import itertools, sys; from hpt_trl.rewards.sandbox import users; users._next = itertools.count(7); "
    asked = [sys.executable, "-c", code + "print(users.take_user(), flush=True); sys.stdin.read()"]
    other = subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None and other.stdout is not None
    theirs = int(other.stdout.readline())

    def taken() -> int:
        monkeypatch.setattr(users, "_next", itertools.count(theirs - users.FIRST))
        found = users.take_user()
        assert found is not None
        return found

    ours, ours_too = taken(), taken()
    assert len({theirs, ours, ours_too}) == 3
    users.give_back(ours)
    assert taken() == ours
    # Also a run that is killed gives its users back.
    other.kill()
    other.communicate()
    assert taken() == theirs
    for user in (theirs, ours, ours_too):
        users.give_back(user)


TRAINING = """
import sys, time
from hpt_trl.rewards.sandbox.process import run_process
from hpt_trl.rewards.sandbox.probing import find_isolation
from hpt_trl.rewards.sandbox.program import Program
from hpt_trl.rewards.sandbox.limits import Limits
from tests.rewards.sandbox.conftest import isolation_of
isolation = isolation_of(sys.argv[1])
print("ready", flush=True)
code = "import os, time\\nif os.fork() == 0: os.setsid()\\ntime.sleep(98765)"
run_process(isolation.backend, isolation.interpreter, Program(code), Limits(wall_seconds=60))
"""


@pytest.mark.parametrize("name", NAMES)
def test_programs_end_with_a_training_that_is_killed(name, outside):
    isolation_of(name)
    # Of this test alone, and as open as /tmp to the user that programs run as.
    folder = Path(tempfile.mkdtemp(prefix="hpt-trl-test-", dir="/var/tmp"))
    folder.chmod(0o1777)
    training = subprocess.Popen(
        [sys.executable, "-c", TRAINING, name],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"TMPDIR": str(folder)},
    )
    assert training.stdout is not None and training.stdout.readline() == "ready\n"
    below: list[psutil.Process] = []
    # Harness, program and its child, at least.
    while len([process for process in below if "python" in process.name()]) < 3:
        below = psutil.Process(training.pid).children(recursive=True)
        time.sleep(0.02)
    training.kill()
    training.wait()
    training.stdout.close()
    # They come to this process, which asks how they ended as the first one of a machine does.
    assert psutil.wait_procs(below, timeout=10)[1] == []
    folder.rmdir()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("wall_seconds", 0, "0.1 to 86400"),
        ("cpu_seconds", float("nan"), "not allowed"),
        ("memory_mib", 1, "64 to"),
        ("processes", 2.5, "whole number"),
        ("output_kib", "many", "whole number"),
        ("files", True, "whole number"),
    ],
)
def test_limits_out_of_range_are_refused(field, value, message):
    with pytest.raises(UserError, match=f"`{field}: .*{message}"):
        Limits(**{field: value})

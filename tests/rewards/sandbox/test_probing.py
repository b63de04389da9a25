"""A sandbox with a hole is refused by the probe, with the hole's name; where none is left, nothing is run."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from hpt_trl.errors import UserError
from hpt_trl.rewards.sandbox import probing, unprotected
from hpt_trl.rewards.sandbox.bubblewrap import Bubblewrap
from hpt_trl.rewards.sandbox.interpreters import Interpreter, interpreters
from hpt_trl.rewards.sandbox.launch import Launch
from hpt_trl.rewards.sandbox.limits import Limits
from hpt_trl.rewards.sandbox.probing import Isolation, find_isolation, probe
from hpt_trl.rewards.sandbox.program import Program
from hpt_trl.rewards.sandbox.sandbox import Sandbox
from tests.rewards.sandbox.conftest import LIMITS, isolations

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no sandbox but on Linux")


@dataclass(frozen=True)
class Weakened:
    """A sandbox that works, changed."""

    isolation: Isolation
    change: Callable[[Launch], Launch]
    name: str = "weakened"

    def refusal(self) -> str | None:
        return None

    def launch(self, interpreter: Interpreter, limits: Limits) -> Launch:
        return self.change(self.isolation.backend.launch(interpreter, limits))


def without(*words: str) -> Callable[[Launch], Launch]:
    """Leaves words of the command out."""

    def change(launch: Launch) -> Launch:
        text = "\0".join(launch.command)
        assert "\0".join(words) in text
        return dataclasses.replace(launch, command=text.replace("\0".join(words) + "\0", "", 1).split("\0"))

    return change


def first(*words: str) -> Callable[[Launch], Launch]:
    """Puts words before all others of the command."""
    return lambda launch: dataclasses.replace(launch, command=[launch.command[0], *words, *launch.command[1:]])


def last(*words: str) -> Callable[[Launch], Launch]:
    """Puts words after the others, before the interpreter."""

    def change(launch: Launch) -> Launch:
        place = launch.command.index("--")
        return dataclasses.replace(launch, command=[*launch.command[:place], *words, *launch.command[place:]])

    return change


def told(**job: object) -> Callable[[Launch], Launch]:
    return lambda launch: dataclasses.replace(launch, job={**launch.job, **job})


HOLES = [
    ("filter of system calls", told(filter="")),
    ("network", lambda launch: told(filter="")(first("--share-net")(launch))),
    ("reading", first("--ro-bind", "/etc", "/etc")),
    ("home folders", first("--ro-bind", "/home", "/home", "--tmpfs", "/root", "--dir", "/root/x")),
    ("writing", without("--remount-ro", "/")),
    ("writing", without("--remount-ro", "/dev")),
    ("environment", last("--setenv", "HPT_TRL_SECRET", "x")),
    ("processes", told(counts_processes=False)),
    ("a plain program", last("--remount-ro", "/tmp")),
]


@pytest.mark.parametrize(("name", "change"), HOLES)
def test_a_hole_is_found(name, change):
    wrapped = [one for one in isolations().values() if isinstance(one.backend, Bubblewrap)]
    if not wrapped:
        pytest.skip("bubblewrap does not work on this machine")
    assert isinstance(probe(Weakened(wrapped[0], lambda launch: launch), wrapped[0].interpreter), Isolation)
    found = probe(Weakened(wrapped[0], change), wrapped[0].interpreter)
    # The watch may be quicker than the probe to find too many processes.
    assert isinstance(found, list) and any(line.startswith(name) or "threads" in line for line in found), found


def test_no_isolation_is_no_sandbox():
    found = probe(unprotected.Unprotected(), next(iter(isolations().values())).interpreter)
    assert isinstance(found, list)
    names = {line.partition(":")[0] for line in found}
    all_of_them = {"network", "network, UDP", "abstract socket", "socket file", "reading", "writing"}
    # As a user whose processes the kernel does not count apart, the watch may end the probe before it reports.
    assert all_of_them <= names or "threads" in found[0], found


def test_what_cannot_start_is_told():
    (fault,) = probe(Bubblewrap("/bin/false"), interpreters()[0])
    assert "ended with 1" in fault
    (fault,) = probe(Bubblewrap("/no/such/bwrap"), interpreters()[0])
    assert "/no/such/bwrap" in fault


@pytest.fixture
def broken(monkeypatch):
    """No sandbox works: one does not start, the other is open."""
    hole = Weakened(next(iter(isolations().values())), lambda launch: launch, name="with a hole")
    monkeypatch.setattr(probing, "backends", lambda: [Bubblewrap("/bin/false"), unprotected.Unprotected("open")])
    monkeypatch.setattr(probing, "bubblewraps", lambda: [])
    monkeypatch.setattr(probing, "_found", {})
    return hole


def test_without_a_sandbox_nothing_is_run(broken):
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            Sandbox(LIMITS)
        message = str(caught.value)
        for part in ("bubblewrap: not installed", "/bin/false", "open, /", "apt-get install bubblewrap"):
            assert part in message, message
        assert "hpt-trl[sandbox]" in message and "Linux container" in message


def test_the_key_runs_programs_without_a_sandbox_and_warns_each_time(broken, caplog):
    sandbox = Sandbox(dataclasses.replace(LIMITS, cpu_seconds=1), unprotected=True)
    assert not sandbox.isolation.protects
    program = Program("import os\nprint(sorted(os.environ))\nopen('x', 'w').write('x')\nprint(os.listdir())")
    for count in (1, 2):
        outcome = sandbox.run(program)
        assert outcome.status == "ended" and outcome.stdout.endswith("['x']\n")
        assert "PATH" in outcome.stdout and "OMP" in outcome.stdout and "USER" not in outcome.stdout
        assert caplog.text.count("WITHOUT a sandbox") == count
    # The limits stand all the same, and what it leaves behind is ended.
    assert sandbox.run(Program("while True: pass")).status == "timeout"
    assert sandbox.run(Program("x = bytearray(2**30)")).status == "memory"
    assert sandbox.run(Program("while True: print('x' * 1000)")).status == "output"


def test_the_key_takes_a_sandbox_where_one_works():
    assert find_isolation(unprotected=True).protects

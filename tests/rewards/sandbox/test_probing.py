"""A sandbox with a hole is refused by the probe, with the hole's name; where none is left, nothing is run."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
from tests.helpers.processes import ENVIRONMENT
from tests.rewards.sandbox.conftest import LIMITS, NAMES, ROOT, isolation_of, isolations

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


def test_a_training_that_is_the_first_of_its_container_has_a_sandbox(monkeypatch):
    isolation = next(iter(isolations().values()))
    # The number that the harness has inside of bubblewrap.
    monkeypatch.setattr(probing.os, "getpid", lambda: 1)
    assert isinstance(probe(isolation.backend, isolation.interpreter), Isolation)


def test_processes_of_the_same_user_are_out_of_reach(outside, monkeypatch):
    """Where the training is not root, its programs are its own user's."""
    isolation = isolation_of("Landlock (sandlock)")
    monkeypatch.setattr(probing.os, "getpid", lambda: outside.canary.pid)
    assert isinstance(probe(isolation.backend, isolation.interpreter), Isolation)
    found = probe(Weakened(isolation, told(filter="")), isolation.interpreter)
    assert isinstance(found, list) and sum(line.startswith("limits of others") for line in found) >= 1, found


UNKNOWN = """
import os
from hpt_trl.rewards.sandbox.interpreters import interpreters
from hpt_trl.rewards.sandbox.probing import backends, probe
for backend in backends():
    for home in ("/", "/tmp", None):
        os.environ.pop("HOME", None)
        if home is not None:
            os.environ["HOME"] = home
        print(backend.name, home, backend.refusal() or probe(backend, interpreters()[0]), sep="|")
"""


def test_a_user_without_a_name_has_the_same_sandboxes():
    """As `docker run --user 12345` has it: no entry in the list of users, and `/` or nothing as a home folder."""
    isolation = next(iter(isolations().values()))
    path = isolation.interpreter.path
    if not path.startswith("/usr/") or isolation.version.split(".")[:2] != [*map(str, sys.version_info[:2])]:
        pytest.skip("there is no interpreter of this version that any user can run")
    user = {"user": 12345, "group": 12345, "extra_groups": []} if os.geteuid() == 0 else {}
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run([path, "-B", "-c", UNKNOWN], capture_output=True, text=True, env=environment, cwd="/", **user)
    if "No module named 'hpt_trl'" in done.stderr:
        pytest.skip("another user cannot read this code")
    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in done.stdout.splitlines()]
    for name, home, said in lines:
        assert name not in isolations() or said.startswith(name), (home, said)
    assert len(lines) == 3 * len(NAMES)


def test_an_interpreter_in_a_home_folder_does_not_open_it(monkeypatch):
    isolation = next((one for one in isolations().values() if isinstance(one.backend, Bubblewrap)), None)
    if isolation is None:
        pytest.skip("bubblewrap does not work on this machine")
    # Not in pytest's own folder, which another user cannot enter.
    with tempfile.TemporaryDirectory(prefix="hpt-trl-test-", dir="/var/tmp") as home:
        (Path(home) / "tools" / "python").mkdir(parents=True)
        (Path(home) / "letters").mkdir()
        Path(home).chmod(0o755)
        monkeypatch.setenv("HOME", home)
        inside = dataclasses.replace(isolation.interpreter, folders=(f"{home}/tools/python",))
        assert isinstance(probe(isolation.backend, inside), Isolation)
        found = probe(Weakened(isolation, last("--ro-bind", home, home)), inside)
        assert found == [f"home folders: it listed {home}"]


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

"""A program that is to be run, and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

# How a run ended:
#   ended     of itself, with return code 0
#   error     of itself, with another return code, or by an exception that nothing caught
#   timeout   its processor time or the wall clock ran out
#   memory    it asked for more than it may have
#   output    it wrote more than it may
#   files     it made more files, or larger ones, than its folder may hold
#   processes it ran more threads than it may
#   killed    by a signal, its own or another's
#   skipped   it was not run: there was no time left for it
Status = Literal["ended", "error", "timeout", "memory", "output", "files", "processes", "killed", "skipped"]


@dataclass(frozen=True)
class Program:
    """Python source, and what it is run on.

    Without `tests` it is run as a script, once for each of `inputs`. With them it is run once, as a module; then each
    test is run, one after the other, in a namespace that holds the module's names. A test fails by raising anything.

    Attributes:
        code: the source.
        setup: source that is run after it and before the tests, in the module.
        tests: sources.
        inputs: standard input of each run.
        keeps: a name of the module that tests see although it hides a builtin function; other such names they do not
            see, so that a program cannot put its own `all` or `abs` before theirs.
        imports: modules that the tests and setup import: those that exist are imported before the program, the
            others stay missing. Before setup and each test all modules get the variables and classes that they had.
    """

    code: str
    setup: str = ""
    tests: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ("",)
    keeps: str | None = None
    imports: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One run of a program.

    Attributes:
        returncode: negative for a signal; None where nobody knows.
        stdout: of a run that did not end of itself with 0, its first 4,096 characters.
        stderr: its last 4,096 characters.
        cpu_seconds: processor time of its first process and of those that it waited for.
        passed: whether it wrote what it should, where that has been looked at (see `Kept`).
    """

    status: Status
    returncode: int | None = None
    stdout: str = ""
    stderr: str = ""
    cpu_seconds: float = 0.0
    passed: bool | None = None


# The number of a run and the run, as soon as it is over, to what is kept of it: many programs may write much.
Kept = Callable[[int, Run], Run]


@dataclass(frozen=True)
class TestResult:
    """Whether a test passed, and else what it raised."""

    __test__ = False

    passed: bool
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a program.

    Attributes:
        status: of the first run that did not end well, else `ended`.
        seconds: wall time, the making of the sandbox included.
        runs: those that were finished or ended by force, in order; there may be fewer than inputs.
        results: those of the tests that were reached, in order; there may be fewer than tests. What was reported
            before a program was ended by force counts.
        detail: what ended it, in words; where nothing was reported at all, what was found instead.
    """

    status: Status
    seconds: float
    runs: tuple[Run, ...] = ()
    results: tuple[TestResult, ...] = ()
    detail: str = ""

    @property
    def returncode(self) -> int | None:
        """Of the last run."""
        return self.runs[-1].returncode if self.runs else None

    @property
    def stdout(self) -> str:
        """Of the last run."""
        return self.runs[-1].stdout if self.runs else ""

    @property
    def stderr(self) -> str:
        """Of the last run."""
        return self.runs[-1].stderr if self.runs else ""

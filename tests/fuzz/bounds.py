"""How much is drawn, how long one example may take, how much may be said of it, and where what was found is kept."""

import faulthandler
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings

from hpt_trl.errors import UserError

CORPUS = Path(__file__).parent / "corpus"
# Of one example: the process's own time, which other processes do not lengthen, and the clock's for one that waits.
SECONDS, WAITING = 10.0, 120.0
# Of one mistake. A list of what is allowed may be long.
LINES, LENGTH = 20, 2500
# Examples that `make fuzz` asks for of each test, and where the process notes what it has drawn.
ASKED = int(os.environ.get("HPT_FUZZ", "0"))
COUNTS_FILE = "HPT_FUZZ_COUNTS"

drawn: Counter[str] = Counter()


class Hangs(BaseException):
    """An example took longer than it may; no handler of the code under test is to take it for its own."""


def examples(few: int, share: float = 1.0) -> settings:
    """Settings of a test: a few examples, always the same, or a share of those that HPT_FUZZ asks for, drawn anew."""
    return settings(
        max_examples=max(1, int(ASKED * share)) if ASKED else few,
        derandomize=not ASKED,
        database=None,
        deadline=None,
        print_blob=True,
        # To explain a failure hypothesis traces each line, and what takes long then would hide it.
        phases=[phase for phase in Phase if phase is not Phase.explain],
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def bounded(kind: str, content: bytes = b"", ending: str = "") -> Iterator[None]:
    """Inside, nothing takes longer than it may, and the variables of the process are its own.

    Args:
        kind: what is tried (`recipes`, `files`, ...), and after a blank how; it is counted.
        content: what is tried, as a file: where it comes to anything but an answer, `make fuzz` keeps it in the corpus.
        ending: of the file's name.
    """

    def ring(number: int, frame: object) -> None:
        raise Hangs(f"longer than {SECONDS} seconds of its own, or {WAITING} of the clock's")

    environment = dict(os.environ)
    before = {number: signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)}
    # pytest-timeout's.
    left, began = signal.getitimer(signal.ITIMER_REAL)[0], time.monotonic()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    # Where no handler of Python's is called, as inside a regular expression.
    faulthandler.dump_traceback_later(2 * WAITING, exit=True)
    try:
        yield
    except UserError:
        raise
    except BaseException:
        _keep(kind, content, ending)
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, max(0.1, left - (time.monotonic() - began)) if left else 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        drawn[kind] += 1


def told_by(kind: str, content: bytes, check: Callable[[], object]) -> list[str]:
    """The mistakes that a check of a YAML file tells, each bounded; empty where it tells none.

    Args:
        kind, content: see `bounded`.
    """
    try:
        with bounded(kind, content, ".yaml"):
            check()
    except UserError as error:
        assert is_short(error), str(error)[:2000]
        return [str(one) for one in error.every]
    return []


def _keep(kind: str, content: bytes, ending: str) -> None:
    """Writes what was found, over what hypothesis had before it made it smaller."""
    if ASKED and ending:
        test = re.sub(r"\W+", "_", os.environ.get("PYTEST_CURRENT_TEST", "").rpartition("::")[2].partition(" ")[0])
        (CORPUS / kind.partition(" ")[0] / f"found_{test}{ending}").write_bytes(content)


def note_counts() -> None:
    """Adds what this process has drawn to the file that the campaign names."""
    if file := os.environ.get(COUNTS_FILE):
        Path(file).write_text(json.dumps(drawn), encoding="utf-8")


def is_short(error: UserError) -> bool:
    """Whether each mistake is told in bounded lines that any terminal can write."""
    said = [str(one) for one in error.every]
    return all(text.encode() and len(text.splitlines()) <= LINES and len(text) <= LENGTH for text in said)

"""How much is drawn, how long one example may take, and how much may be said of it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings

from hpt_trl.errors import UserError

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 5.0
# Of one mistake. A list of what is allowed may be long.
LINES, LENGTH = 20, 2500


class Hangs(BaseException):
    """An example took longer than it may; no handler of the code under test is to take it for its own."""


def examples(few: int, share: float = 1.0) -> settings:
    """Settings of a test: a few examples, always the same, or a share of those that HPT_FUZZ asks for, drawn anew."""
    asked = int(os.environ.get("HPT_FUZZ", "0"))
    return settings(
        max_examples=max(1, int(asked * share)) if asked else few,
        derandomize=not asked,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def bounded() -> Iterator[None]:
    """Inside, nothing takes longer than it may, and the variables of the process are its own."""

    def ring(number: int, frame: object) -> None:
        raise Hangs(f"longer than {SECONDS} seconds")

    environment, before = dict(os.environ), signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def is_short(error: UserError) -> bool:
    """Whether each mistake is told in bounded lines that any terminal can write."""
    said = [str(one) for one in error.every]
    return all(text.encode() and len(text.splitlines()) <= LINES and len(text) <= LENGTH for text in said)

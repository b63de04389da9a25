"""Signals that end a command, as exceptions: what it has begun is put away before it ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Exit code of a command that Ctrl-C ended.
INTERRUPTED = 130


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with what to say: what is left and how to go on; nothing where that is said already."""


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into an exception, so that a command that is told to end leaves nothing behind.

    Signals that are ignored stay so (`nohup`). Python handles signals in the main thread alone; in others nothing is
    changed.
    """

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""What a run says beside its display: progress bars become a line of it, and what the package warns of is printed."""

import io
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TextIO

# tqdm's: description, share, bar, count and times.
_BAR = re.compile(r"(.*?)\s*\d+%\|.*\|\s*(\d\S*/\d\S*)")


# By which bars below each other are reached.
_UP = "\x1b[A"


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Prints what the package itself warns of: it is for reading, and standard error is a red box in a notebook."""
    logger, handler = logging.getLogger("hpt_trl"), _Printing()
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


@contextmanager
def without_bars() -> Iterator[None]:
    """Leaves out bars of what takes seconds, and what PEFT warns of where the package says more."""
    with warnings.catch_warnings(), redirect_stderr(Bars(sys.stderr, lambda text: None)):
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        yield


class _Printing(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), flush=True)


class Bars(io.TextIOBase):
    """Takes progress bars (they begin with a carriage return) out of a stream; everything else goes through.

    Args:
        stream: Where the rest goes.
        show: Gets a bar's text each time it is drawn.
    """

    def __init__(self, stream: TextIO, show: Callable[[str], None]):
        self.stream, self.show = stream, show
        self._after_bar = False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if "\r" in text:
            before, _, bar = text.rpartition("\r")
            self._after_bar = True
            if bar.strip():
                found = _BAR.match(bar.strip())
                self.show(f"{found[1]} {found[2]}".strip() if found else bar.strip())
            rest = before.partition("\r")[0]
            if rest.strip():
                self.stream.write(rest)
        elif text.replace(_UP, "").strip():
            self._after_bar = False
            self.stream.write(text)
        elif not self._after_bar:
            # The end of a line of the stream, and not the one that a bar is closed with.
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

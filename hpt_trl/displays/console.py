"""What goes to standard error while a run is shown live: progress bars become a line of the display."""

import io
import re
from collections.abc import Callable
from typing import TextIO

# tqdm's: description, share, bar, count and times.
_BAR = re.compile(r"(.*?)\s*\d+%\|.*\|\s*(\d\S*/\d\S*)")


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
        elif text.strip():
            self._after_bar = False
            self.stream.write(text)
        elif not self._after_bar:
            # The end of a line of the stream, and not the one that a bar is closed with.
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

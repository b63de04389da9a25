"""A terminal for the tests: processes on a pseudo terminal of a given size, and what its screen showed."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.helpers.processes import ENVIRONMENT

_CONTROL = re.compile(r"\x1b\[(\d*)([A-Za-z])")


class Terminal:
    """A Python process on a pseudo terminal."""

    def __init__(self, *words: str, columns: int = 80, cwd: Path | None = None, **variables: str):
        parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        environment = {key: value for key, value in ENVIRONMENT.items() if key not in ("COLUMNS", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, *words],
            stdin=child,
            stdout=child,
            stderr=child,
            env=environment | {"TERM": "xterm", "OMP_NUM_THREADS": "1"} | variables,
            cwd=cwd,
            start_new_session=True,
            # The terminal is the process's own, so that Ctrl-C reaches it.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(child)
        self.parent, self.seen = parent, ""

    def read(self, until: Callable[[str], Any] = lambda seen: False, seconds: float = 120) -> str:
        """What was written so far, once it is enough or the process has ended."""
        end = time.monotonic() + seconds
        while not until(self.seen):
            assert time.monotonic() < end, self.seen
            if not select.select([self.parent], [], [], 0.2)[0]:
                continue
            try:
                data = os.read(self.parent, 65536)
            except OSError:
                break
            if not data:
                break
            self.seen += data.decode(errors="replace")
        return self.seen

    def write(self, text: str) -> None:
        os.write(self.parent, text.encode())

    def ended(self) -> int:
        """Reads to the end and returns the exit code."""
        self.read()
        os.close(self.parent)
        return self.process.wait(60)


def screens(written: str) -> Iterator[list[str]]:
    """The lines of a terminal after each of the characters that move its cursor."""
    lines, row, column, place = [""], 0, 0, 0
    while place < len(written):
        control = _CONTROL.match(written, place)
        if control is not None:
            if control[2] == "A":
                row = max(0, row - int(control[1] or 1))
            place = control.end()
            continue
        character, place = written[place], place + 1
        if character in "\r\n":
            yield [line.rstrip() for line in lines]
        if character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        else:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + character + line[column + 1 :]
            column += 1
    yield [line.rstrip() for line in lines]

"""Whether two mathematical answers are equal, decided without ever hanging the training run.

math-verify stops a comparison by an alarm signal, which works in the main thread only and cannot interrupt one long
operation on big integers. A model under training writes such answers (`7^{10^{10}}`), so everything but equal text
and plain numbers is compared in a child process that is killed when it takes too long.
"""

import json
import re
import select
import subprocess
import sys
import threading
from fractions import Fraction
from functools import lru_cache

# Longer texts are rambling, not answers, and costly to parse.
_MAX_LENGTH = 400
_NUMBER = re.compile(r"[-+]?(?:\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)(?:/\d+)?")
_IGNORED = re.compile(r"\\[!,;:%$ ]|\\(?:left|right|displaystyle)(?![a-zA-Z])|[$\s]")


class _Worker:
    """The child process, started on first use and again after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, gold: str, candidate: str, timeout: float) -> bool:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            process = self._process
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps([gold, candidate]).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], timeout)
            reply = process.stdout.readline() if ready else b""
            if not reply:
                process.kill()
                process.wait()
                self._process = None
                return False
            return json.loads(reply)

    def _start(self) -> "subprocess.Popen[bytes]":
        # By path and with -P, so that the child imports nothing of this package and the user's script is not run again.
        command = [sys.executable, "-P", __file__]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        # Importing sympy must not count against the first answer.
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the child process that compares answers did not start: {' '.join(command)}")
        return process


_worker = _Worker()


def equal_answers(gold: str, candidate: str, *, timeout: float = 5.0) -> bool:
    """Return whether `candidate` equals `gold`: as text, as numbers, or by math-verify.

    An answer that cannot be compared within `timeout` seconds, or is longer than 400 characters, is not equal.
    """
    gold, candidate = _plain(gold), _plain(candidate)
    if gold == candidate:
        return bool(gold)
    if not gold or not candidate or max(len(gold), len(candidate)) > _MAX_LENGTH:
        return False
    numbers = _number(gold), _number(candidate)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return _by_math_verify(gold, candidate, timeout)


@lru_cache(maxsize=10_000)
def _by_math_verify(gold: str, candidate: str, timeout: float) -> bool:
    return _worker.ask(gold, candidate, timeout)


def _plain(text: str) -> str:
    """Drop what does not change a value: spaces, dollar signs, LaTeX spacing, a final full stop."""
    return _IGNORED.sub("", text).rstrip(".") if len(text) <= 10 * _MAX_LENGTH else text.strip()


def _number(text: str) -> Fraction | None:
    if not _NUMBER.fullmatch(text) or text.endswith(tuple("/0" + "0" * n for n in range(5))):
        return None
    return Fraction(text.replace(",", ""))


def _serve() -> None:
    """Answer `[gold, candidate]` lines with `true` or `false` until the input ends."""
    import logging

    from math_verify import parse, verify

    # The parent is the timeout; math-verify warns about having none.
    logging.disable(logging.WARNING)
    print("ready", flush=True)
    for line in sys.stdin:
        gold, candidate = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in json.loads(line))
        print(json.dumps(bool(verify(gold, candidate, timeout_seconds=None))), flush=True)


if __name__ == "__main__":
    _serve()

"""The child process that asks math-verify. It is run by its path and imports nothing of this package.

Its argument is the bytes of memory. One line of JSON `[seconds of processor time, question]` comes in for each
question, one line goes out: `true`, `false`, or `null` where it gave up.
"""

import json
import logging
import os
import signal
import sys
from functools import lru_cache

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class _TooLong(BaseException):
    pass


def _too_long(*_):
    raise _TooLong


def main() -> None:
    """Answer questions until the input ends."""
    # Ctrl-C is for the parent, which ends the child by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    memory = int(sys.argv[1])
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    from sympy import I

    # The limits stand here; math-verify warns about having none.
    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(2000)
    if resource is not None and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    # The parent has read the units; math-verify would take the `ab` of `2ab` for one.
    plain = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )
    targets = [LatexExtractionConfig(normalization_config=plain), ExprExtractionConfig()]

    @lru_cache(maxsize=2000)
    def read(text: str) -> tuple:
        return tuple(parse(f"\\boxed{{{text}}}", targets, parsing_timeout=None))

    def same(gold: str, answer: str) -> bool:
        one, two = list(read(gold)), list(read(answer))
        if verify(one, two, timeout_seconds=None):
            return True
        if not one or not two or isinstance(one[0], str) or isinstance(two[0], str):
            return False
        if _equivalent(one[0], two[0]):
            return True
        symbols = {symbol for form in (one[0], two[0]) for symbol in getattr(form, "free_symbols", ())}
        imaginary = {symbol: I for symbol in symbols if symbol.name == "i"}
        if imaginary:
            pair = [form.subs(imaginary).doit() for form in (one[0], two[0])]
            return verify(pair[:1], pair[1:], timeout_seconds=None)
        return False

    def decide(question) -> bool:
        if isinstance(question, bool):
            return question
        kind, *rest = question
        if kind == "same":
            return same(*rest)
        if kind == "all":
            return all(decide(part) for part in rest)
        if kind == "any":
            return any(decide(part) for part in rest)
        rows = rest[0]
        taken: dict[int, int] = {}
        known: dict[tuple[int, int], bool] = {}

        def place(row: int, seen: set) -> bool:
            for column, part in enumerate(rows[row]):
                if column in seen:
                    continue
                if (row, column) not in known:
                    known[row, column] = decide(part)
                if known[row, column]:
                    seen.add(column)
                    if column not in taken or place(taken[column], seen):
                        taken[column] = row
                        return True
            return False

        return all(place(row, set()) for row in range(len(rows)))

    # By the processor's time, so that a busy machine changes no verdict: first an exception, which keeps the child,
    # then, where one long operation on big integers never comes back to Python, the system's own end.
    timed = hasattr(signal, "setitimer")
    if timed:
        signal.signal(signal.SIGVTALRM, _too_long)
    print("ready", flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for line in sys.stdin:
        verdict: bool | None = None
        try:
            seconds, question = json.loads(line)
            if timed:
                signal.setitimer(signal.ITIMER_PROF, seconds + 1)
                signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
            verdict = bool(decide(question))
        except (_TooLong, MemoryError):
            pass
        # sympy may raise anything on what a model wrote.
        except Exception:
            verdict = False
        finally:
            if timed:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), flush=True)


def _equivalent(gold, answer) -> bool:
    """Relations that math-verify calls different: multiples of one equation, inequalities with the same solutions."""
    from sympy import Eq, simplify
    from sympy.core.relational import Relational

    if isinstance(gold, Eq) and isinstance(answer, Eq):
        ratio = simplify((gold.lhs - gold.rhs) / (answer.lhs - answer.rhs))
        return bool(ratio.is_number and ratio.is_finite and not ratio.is_zero)
    if isinstance(gold, Relational) and isinstance(answer, Relational) and gold.free_symbols == answer.free_symbols:
        return len(gold.free_symbols) == 1 and gold.as_set() == answer.as_set()
    return False


if __name__ == "__main__":
    main()

r"""Programs in a second in each sandbox that works here, beside the same programs in a bare interpreter each.

    python -m benchmarks.sandbox --programs 40 --rounds 5 --output benchmarks/results/sandbox-cpu.json

A program is a function of a few lines with five assertions, as HumanEval has them. The bare side is `subprocess.run` of
the same interpreter on program and assertions, with no limit but a time-out: what a sandbox has to be measured by. In
each round every side has its turn, in an order that moves on from round to round; of the rounds the median counts.
Printed for one program at a time, and for as many as there are cores: programs per second, milliseconds of a program,
and the time over that of the bare interpreter (above 1: slower).
"""

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.shared import parser_of, processors, write_report
from hpt_trl.rewards.sandbox.interpreters import interpreters
from hpt_trl.rewards.sandbox.probing import Isolation, backends, find_isolation, probe
from hpt_trl.rewards.sandbox.program import Program
from hpt_trl.rewards.sandbox.sandbox import Sandbox

BARE = "bare interpreter"
CODE = """
from typing import List

def rolling_max(numbers: List[int]) -> List[int]:
    running, result = None, []
    for number in numbers:
        running = number if running is None else max(running, number)
        result.append(running)
    return result
"""
TESTS = tuple(f"assert rolling_max({list(range(n))}) == {list(range(n))}" for n in range(5))

Side = Callable[[int, int], None]


def main() -> None:
    """Runs the rounds, prints the table, and writes the figures where a file is named."""
    parser = parser_of(__doc__)
    parser.add_argument("--programs", type=int, default=40, help="of a side in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    python = find_isolation().interpreter.path
    sides: dict[str, Side] = {BARE: lambda count, workers: bare(python, count, workers)}
    sides |= {isolation.backend.name: sandboxed(isolation) for isolation in working()}
    # The first program of a side pays for what it imports.
    for side in sides.values():
        side(1, 1)
    cores = Sandbox.workers()
    seconds: dict[int, dict[str, list[float]]] = {
        workers: {name: [] for name in sides} for workers in sorted({1, cores})
    }
    for number in range(options.rounds):
        names = [*sides]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            for workers, times in seconds.items():
                start = time.perf_counter()
                sides[name](options.programs, workers)
                times[name].append((time.perf_counter() - start) / options.programs)
    report = {
        "machine": f"{len(processors())} x {processors()[0]}",
        "interpreter": str(find_isolation()),
        "programs": options.programs,
        "rounds": options.rounds,
        "at_a_time": {workers: figures(times) for workers, times in seconds.items()},
    }
    print(table(report["at_a_time"]))
    print(json.dumps({key: value for key, value in report.items() if key != "at_a_time"}))
    write_report(report, options.output)


def working() -> list[Isolation]:
    """The sandboxes that pass the probe here, each with its first interpreter."""
    found: dict[str, Isolation] = {}
    for backend in backends():
        for interpreter in interpreters():
            result = None if backend.refusal() else probe(backend, interpreter)
            if isinstance(result, Isolation):
                found.setdefault(backend.name, result)
    return [*found.values()]


def sandboxed(isolation: Isolation) -> Side:
    """A side that runs programs in a sandbox."""
    sandbox = Sandbox(isolation=isolation)

    def run(count: int, workers: int) -> None:
        outcomes = sandbox.run_all([Program(CODE, tests=TESTS)] * count, workers)
        assert all(outcome.status == "ended" and len(outcome.results) == len(TESTS) for outcome in outcomes), outcomes

    return run


def bare(python: str, count: int, workers: int) -> None:
    """The same programs in an interpreter each and nothing around it."""
    source = CODE + "\n".join(TESTS)

    def one(_: int) -> None:
        subprocess.run([python, "-c", source], check=True, timeout=10)

    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(one, range(count)))


def figures(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of each side the median over the rounds; the ratio is the median of the rounds' own ratios."""
    return {
        name: {
            "programs_per_second": round(1 / statistics.median(seconds), 1),
            "milliseconds": round(1000 * statistics.median(seconds), 1),
            "times_bare": round(statistics.median(a / b for a, b in zip(seconds, times[BARE], strict=True)), 2),
        }
        for name, seconds in times.items()
    }


def table(report: dict[int, dict[str, dict[str, float]]]) -> str:
    """The figures as lines of text."""
    lines: list[Sequence[str]] = [("AT A TIME", "SANDBOX", "PROGRAMS/S", "MS EACH", "TIMES BARE")]
    for workers, sides in report.items():
        for name, side in sides.items():
            lines.append((str(workers), name, *(f"{value:g}" for value in side.values())))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


if __name__ == "__main__":
    main()

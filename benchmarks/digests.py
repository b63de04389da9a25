"""What digests of a checkpoint cost, beside writing its files: to note, to compare, and to look at the sizes alone.

    python -m benchmarks.digests --gib 1.5 --rounds 5 --output benchmarks/results/digests-cpu.json

A folder with the files of a checkpoint, random bytes: a third of them weights, two thirds the optimizer's states. In
each round its files are written anew, then noted (every file is brought to the disk and read for its digest), noted
again (on the disk already), compared by every byte, and looked at by their sizes. Files are read from the page cache.
The median of the rounds counts.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.shared import parser_of, processors, write_report
from hpt_trl.digests import damage_of, note_digests

# File -> its share of the bytes.
FILES = {"model.safetensors": 1 / 3, "optimizer.pt": 2 / 3}
_BLOCK = 2**20


def main() -> None:
    """Runs the rounds, prints the table, and writes the figures where a file is named."""
    parser = parser_of(__doc__)
    parser.add_argument("--gib", type=float, default=1.5, help="size of the checkpoint")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk that is measured (a temporary one)")
    options = parser.parse_args()
    rounds: list[dict[str, float]] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rounds.append(one_round(Path(folder), round(options.gib * 2**30)))
    seconds = {what: statistics.median(times[what] for times in rounds) for what in rounds[0]}
    for what, time_taken in seconds.items():
        print(f"{what:<16} {time_taken:8.4f} s")
    machine = processors()
    report = {"machine": f"{len(machine)} x {machine[0]}", "gib": options.gib, "rounds": options.rounds}
    write_report({**report, "seconds": seconds}, options.output)


def one_round(folder: Path, size: int) -> dict[str, float]:
    """Seconds of each way.

    Args:
        folder: empty.
        size: bytes of the checkpoint.
    """
    block = os.urandom(_BLOCK)
    ways = {
        "write": lambda: _write(folder, size, block),
        "note, with disk": lambda: note_digests(folder),
        "note": lambda: note_digests(folder),
        "compare": lambda: damage_of(folder, contents=True),
        "sizes": lambda: damage_of(folder, contents=False),
    }
    found = {}
    for what, way in ways.items():
        began = time.perf_counter()
        way()
        found[what] = time.perf_counter() - began
    return found


def _write(folder: Path, size: int, block: bytes) -> None:
    for name, share in FILES.items():
        with (folder / name).open("wb") as file:
            for _ in range(max(1, round(size * share) // len(block))):
                file.write(block)


if __name__ == "__main__":
    main()

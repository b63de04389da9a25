"""The long fuzz: `python -m tests.fuzz.campaign` draws at least as many recipes, files, rows and words as it is asked.

It goes in parts, each a process of pytest with a seed of its own; what came of each is a line of JSON in the record,
with the commit. A later call goes on with the parts that the record lacks, and another commit, or changed sources,
begin anew. The last line says what was drawn on this commit, and how long it took.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.faults.campaign import commit_of
from tests.fuzz.bounds import COUNTS_FILE
from tests.helpers.processes import ROOT

# What one part asks for, of which each test has its share.
_PART = 2500


class Goal(NamedTuple):
    """What a module of tests has to draw in all, and its kinds of examples, which are counted together."""

    module: str
    kinds: tuple[str, ...]
    count: int


GOALS = (
    Goal("test_recipes.py", ("recipes",), 20_000),
    Goal("test_pipelines.py", ("pipelines",), 2_500),
    Goal("test_files.py", ("files",), 5_000),
    Goal("test_rows.py", ("rows",), 5_000),
    Goal("test_words.py", ("words",), 5_000),
)


def main(words: list[str] | None = None) -> int:
    """Goes through the parts that are left; returns 1 where anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.campaign", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="a share of what is asked for")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no part after this time")
    parser.add_argument("--record", type=Path, default=ROOT / "build" / "fuzz.jsonl", help="lines of the results")
    options = parser.parse_args(words)
    commit, ends = commit_of(ROOT), time.monotonic() + 60 * options.minutes
    if commit.endswith("-dirty"):
        # Nobody can say whether a later call has the same sources.
        commit += f"-{int(time.time())}"
    for goal in GOALS:
        count, found = max(1, round(goal.count * options.scale)), False
        while time.monotonic() < ends and not found:
            done = _done(options.record, commit)
            if sum(_drawn(done)[kind] for kind in goal.kinds) >= count:
                break
            # Another commit draws others.
            seed = zlib.crc32(f"{commit} {sum(line['module'] == goal.module for line in done)}".encode())
            found = _part(goal.module, seed, min(_PART, count), options.record, commit)
    done = _done(options.record, commit)
    drawn, took, core = _drawn(done), *(sum(line[key] for line in done) for key in ("seconds", "of_a_core"))
    counted = ", ".join(f"{count:,} {kind}" for kind, count in sorted(drawn.items(), key=lambda one: -one[1]))
    wrong = sum(line["code"] != 0 for line in done)
    print(
        f"fuzz of {commit}: {counted}; {wrong} of {len(done)} parts found something; "
        f"{took / 60:.0f} minutes ({core / 60:.0f} of one core)"
    )
    return int(wrong > 0)


def _part(module: str, seed: int, asked: int, record: Path, commit: str) -> bool:
    """Draws one part and notes what came of it; returns whether it found anything."""
    record.parent.mkdir(parents=True, exist_ok=True)
    counts, began = record.with_suffix(".counts.json"), time.monotonic()
    counts.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout=0", f"--hypothesis-seed={seed}"]
    environment = os.environ | {"HPT_FUZZ": str(asked), COUNTS_FILE: str(counts), "OMP_NUM_THREADS": "1"}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    before = used.ru_utime + used.ru_stime
    code = subprocess.run([*command, f"tests/fuzz/{module}"], cwd=ROOT, env=environment).returncode
    if code not in (0, 1) and not counts.exists():
        print(f"{module} with seed {seed} ended with code {code}", flush=True)
    line = {"module": module, "seed": seed, "commit": commit, "code": code}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    line |= {
        "seconds": round(time.monotonic() - began, 1),
        "of_a_core": round(used.ru_utime + used.ru_stime - before, 1),
    }
    line["drawn"] = json.loads(counts.read_text(encoding="utf-8")) if counts.exists() else {}
    counts.unlink(missing_ok=True)
    with open(record, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{line['seconds']:5.0f} s  {module}, seed {seed}: {line['drawn']}", flush=True)
    return code != 0


def _done(record: Path, commit: str) -> list[dict]:
    if not record.exists():
        return []
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["commit"] == commit]


def _drawn(done: list[dict]) -> Counter[str]:
    return sum((Counter(line["drawn"]) for line in done), Counter())


if __name__ == "__main__":
    sys.exit(main())

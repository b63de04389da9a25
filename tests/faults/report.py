"""The figures of a campaign: its records summed up, and the tables of docs/reliability.md that are made of the sums."""

import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

import psutil

from tests.faults.verdicts import MISSED, RIGHT, WRONG

BEGIN, END = "<!-- figures of make test-faults -->", "<!-- end of the figures -->"
# Kind of a scenario -> what its faults are called.
_KINDS = {
    "kill": "Kills",
    "damage": "Damaged files",
    "two at once": "Two runs at once in a folder",
    "other recipe": "Resumed with another recipe",
    "other processes": "Resumed in other processes",
}
Sums = dict[str, dict[str, int]]


def read_records(record: Path) -> list[dict[str, Any]]:
    """The lines of a record; of a scenario that was done again on the same commit the last one."""
    if not record.exists():
        return []
    found = {}
    for text in record.read_text(encoding="utf-8").split("\n"):
        # What a kill has cut off is no result.
        with suppress(ValueError):
            line = json.loads(text)
            found[line["commit"], line["seed"], line["id"]] = line
    return list(found.values())


def add_record(record: Path, line: dict[str, Any]) -> None:
    """Adds a line to a record, as a whole whatever else adds to it, or ends this process."""
    record.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(record, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(file).st_size
        torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        os.write(file, (b"\n" if torn else b"") + json.dumps(line, ensure_ascii=False).encode() + b"\n")
    finally:
        os.close(file)


def summed(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What came of the scenarios of the last commit and seed in a record.

    Returns:
        What is kept of a campaign: `benchmarks/results/faults-cpu.json`.
    """
    records = list(records)
    commit, seed = records[-1]["commit"], records[-1]["seed"]
    of_commit = [line for line in records if (line["commit"], line["seed"]) == (commit, seed)]
    found = [line for line in of_commit if line["word"] != MISSED]
    kills = [line for line in found if line["kind"] == "kill"]
    damages = [line for line in found if line["kind"] == "damage"]
    machine = f"{os.cpu_count()} CPU cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}"
    return {
        "commit": commit,
        "seed": seed,
        "date": max(line["time"] for line in of_commit)[:10],
        "machine": f"{machine}, Python {platform.python_version()}",
        "hours": round(sum(line["seconds"] for line in of_commit) / 3600, 2),
        "missed": len(of_commit) - len(found),
        "kinds": _sums(found, lambda line: line["kind"]),
        "kills by run": _sums(kills, lambda line: line["id"].split("/")[1]),
        "kills by phase": _sums(kills, lambda line: line.get("phase", "clock")),
        "steps lost by run": _lost(kills),
        "killed twice": sum(len(line.get("at", [])) > 1 for line in kills),
        "damages by reader": _sums(damages, lambda line: line["id"].split("/")[1]),
        "damages by file": _sums(damages, lambda line: Path(line["file"]).name),
        "damages by way": _sums(damages, lambda line: line["way"]),
        "wrong": {line["id"]: line["word"] for line in found if line["word"] in WRONG},
    }


def _sums(records: Iterable[dict[str, Any]], name: Callable[[dict[str, Any]], str]) -> Sums:
    counts = Counter((name(line), line["word"]) for line in records)
    found: Sums = {}
    for (group, word), count in sorted(counts.items()):
        found.setdefault(group, {})[word] = count
    return found


def _lost(kills: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each run that was killed and went on to its end: optimizer steps that were done again, mean and most."""
    lost: dict[str, list[int]] = {}
    for line in kills:
        if line.get("lost") is not None:
            lost.setdefault(line["id"].split("/")[1], []).append(line["lost"])
    return {run: {"mean": round(fmean(steps), 2), "most": max(steps)} for run, steps in sorted(lost.items())}


def section(sums: dict[str, Any]) -> str:
    """The tables as Markdown, with what they are of."""
    said = [
        f"Of commit {sums['commit']}, {sums['date']}: {sums['machine']}; {sums['hours']} hours of one process, seed "
        f"{sums['seed']}. {sums['killed twice']} runs were killed twice; {sums['missed']} faults more did not come to "
        "pass (the run had ended before, or had no such file) and are not counted.",
        _table({_KINDS[kind]: counts for kind, counts in sums["kinds"].items()}, "Faults"),
    ]
    for title, first in (
        ("kills by run", "Killed run"),
        ("kills by phase", "Killed while"),
        ("damages by reader", "Read by"),
        ("damages by file", "Damaged file"),
        ("damages by way", "Damage"),
    ):
        if sums[title]:
            said.append(_table(sums[title], first, sums["steps lost by run"] if title == "kills by run" else {}))
    if sums["wrong"]:
        said.append("Wrong: " + ", ".join(f"`{name}` ({word})" for name, word in sums["wrong"].items()) + ".")
    return "\n\n".join(said)


def _table(groups: Sums, first: str, lost: Mapping[str, Mapping[str, float]] = MappingProxyType({})) -> str:
    """A table of counts, with steps that were done again where they are given, by group."""
    # What must be none stands in every table.
    there = [word for word in (*RIGHT, *WRONG) if any(word in counts for counts in groups.values())]
    words = [word for word in (*RIGHT, *WRONG) if word in there or word in ("diverged", "accepted damaged")]
    heads = [first, "number", *words, *(("steps done again: mean", "most") if lost else ())]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for name, counts in groups.items():
        figures = [counts.get(word, 0) for word in words]
        cells = [name, sum(figures), *figures]
        if lost:
            cells += [f"{lost[name][way]:g}" if name in lost else "-" for way in ("mean", "most")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def written_into(page: str, sums: dict[str, Any]) -> str:
    """A page with the tables between its two marks."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    if not rest or END not in rest:
        raise ValueError(f"the page lacks the marks {BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n{section(sums)}\n\n{END}{tail}"

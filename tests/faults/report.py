"""The figures of a campaign: its records summed up, and the tables of docs/reliability.md that are made of the sums."""

import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
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
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    return list({(line["commit"], line["id"]): line for line in lines}.values())


def summed(records: Iterable[dict[str, Any]], seed: int) -> dict[str, Any]:
    """What came of the scenarios of the last commit in a record.

    Returns:
        What is kept of a campaign: `benchmarks/results/faults-cpu.json`.
    """
    records = list(records)
    of_commit = [line for line in records if line["commit"] == records[-1]["commit"]]
    found = [line for line in of_commit if line["word"] != MISSED]
    kills = [line for line in found if line["kind"] == "kill"]
    damages = [line for line in found if line["kind"] == "damage"]
    machine = f"{os.cpu_count()} CPU cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}"
    return {
        "commit": records[-1]["commit"],
        "seed": seed,
        "date": max(line["time"] for line in of_commit)[:10],
        "machine": f"{machine}, Python {platform.python_version()}",
        "hours": round(sum(line["seconds"] for line in of_commit) / 3600, 2),
        "missed": len(of_commit) - len(found),
        "kinds": _sums(found, lambda line: line["kind"]),
        "kills by run": _sums(kills, lambda line: line["id"].split("/")[1]),
        "kills by phase": _sums(kills, lambda line: line.get("phase", "clock")),
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
            said.append(_table(sums[title], first))
    if sums["wrong"]:
        said.append("Wrong: " + ", ".join(f"`{name}` ({word})" for name, word in sums["wrong"].items()) + ".")
    return "\n\n".join(said)


def _table(groups: Sums, first: str) -> str:
    # What must be none stands in every table.
    there = [word for word in (*RIGHT, *WRONG) if any(word in counts for counts in groups.values())]
    words = [word for word in (*RIGHT, *WRONG) if word in there or word in ("diverged", "accepted damaged")]
    lines = [f"| {first} | number | {' | '.join(words)} |", "|---|" + "---:|" * (len(words) + 1)]
    for name, counts in groups.items():
        figures = [counts.get(word, 0) for word in words]
        lines.append(f"| {name} | {sum(figures)} | {' | '.join(map(str, figures))} |")
    return "\n".join(lines)


def written_into(page: str, sums: dict[str, Any]) -> str:
    """A page with the tables between its two marks."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    if not rest or END not in rest:
        raise ValueError(f"the page lacks the marks {BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n{section(sums)}\n\n{END}{tail}"

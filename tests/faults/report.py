"""The tables of a campaign, from its records."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.faults.verdicts import MISSED, RIGHT, WRONG


def read_records(record: Path) -> list[dict[str, Any]]:
    """The lines of a record; of a scenario that was done again on the same commit the last one."""
    if not record.exists():
        return []
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    return list({(line["commit"], line["id"]): line for line in lines}.values())


def tables(records: Iterable[dict[str, Any]]) -> str:
    """Markdown: what came of the scenarios, by their kind and run."""
    records = [line for line in records if line["word"] != MISSED]
    words = [word for word in (*RIGHT, *WRONG) if any(line["word"] == word for line in records)]
    rows = Counter((line["kind"], line["id"].split("/")[1], line["word"]) for line in records)
    found = [f"| | faults | {' | '.join(words)} |", "|---|" + "---:|" * (len(words) + 1)]
    for kind, run in sorted({(kind, run) for kind, run, _ in rows}):
        counts = [rows[kind, run, word] for word in words]
        found.append(f"| {kind}, {run} | {sum(counts)} | {' | '.join(map(str, counts))} |")
    return "\n".join(found)

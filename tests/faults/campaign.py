"""The fault campaign: `python -m tests.faults.campaign --minutes 20` goes through the scenarios of `scenarios.py`.

Each result is a line of JSON in the record, with the commit and the seed; a later call goes on with the scenarios that
the record lacks, also after Ctrl-C or SIGTERM, and another commit begins anew. Two calls side by side share the record:
`--part 1/2` and `--part 2/2`. `--only ID` does one again. `--report` prints the tables of what is there, and `--write`
brings them into docs/reliability.md.
`--control` runs without one of the safeguards: that must come to wrong results, or the verdicts see nothing.
"""

import argparse
import fnmatch
import json
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from hpt_trl.runs.quiet import quiet_libraries
from tests.faults.controls import CONTROLS
from tests.faults.report import add_record, read_records, section, summed, written_into
from tests.faults.scenarios import Scenario, all_scenarios
from tests.faults.verdicts import BROKEN, SILENT, WRONG, Verdict
from tests.faults.workshop import BrokenError, Workshop
from tests.helpers.processes import ROOT

FIGURES = ROOT / "benchmarks" / "results" / "faults-cpu.json"
PAGE = ROOT / "docs" / "reliability.md"


def main(words: list[str] | None = None) -> int:
    """Runs a part of the campaign; returns 1 where anything wrong was found, and in a control where nothing was."""
    options = _parser().parse_args(words)
    if options.report or options.write:
        return _report(options)
    record = options.record.with_suffix(f".{options.control}.jsonl") if options.control else options.record
    commit = commit_of(ROOT)
    left = _left(options, record, commit)
    if options.list:
        print("\n".join(scenario.id for scenario in left))
        return 0
    quiet_libraries()
    named = "-".join([commit, *options.part.split("/")[:1]])
    shop = Workshop((options.folder or record.parent / "faults" / named).absolute(), options.control, options.seed)
    ends, found = time.monotonic() + 60 * options.minutes, Counter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for scenario in left:
            if time.monotonic() > ends:
                break
            found[_do(scenario, shop, record, commit)] += 1
    finally:
        shop.close()
    print(f"{sum(found.values())} of {len(left)} scenarios: {', '.join(f'{word} {n}' for word, n in found.items())}")
    if options.control:
        # A control that fails otherwise takes away more than its safeguard.
        return int(not any(found[word] for word in SILENT))
    return int(any(found[word] for word in WRONG))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no scenario after this time")
    parser.add_argument("--record", type=Path, default=ROOT / "build" / "faults.jsonl", help="lines of the results")
    parser.add_argument("--folder", type=Path, help="for the runs; beside the record by default")
    parser.add_argument("--seed", type=int, default=0, help="of the order, and of what is drawn")
    parser.add_argument("--only", nargs="+", metavar="ID", help="these, done or not; patterns as of file names")
    parser.add_argument("--count", type=int, help="how many at most")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="every Nth, for calls side by side")
    parser.add_argument("--control", choices=[*CONTROLS], help="run without this safeguard")
    parser.add_argument("--list", action="store_true", help="print the ids of what would be done")
    parser.add_argument("--report", action="store_true", help="print the tables of the record's last commit")
    parser.add_argument("--write", action="store_true", help=f"keep them in {FIGURES.name} and {PAGE.name}")
    return parser


def _report(options: argparse.Namespace) -> int:
    records = read_records(options.record)
    if not records:
        sys.exit(f"there is no result in {options.record}")
    sums = summed(records)
    print(section(sums))
    if options.write:
        PAGE.write_text(written_into(PAGE.read_text(encoding="utf-8"), sums), encoding="utf-8")
        FIGURES.write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    return 0


def _left(options: argparse.Namespace, record: Path, commit: str) -> list[Scenario]:
    scenarios = all_scenarios(options.seed)
    if options.only:
        chosen = [one for one in scenarios if any(fnmatch.fnmatch(one.id, pattern) for pattern in options.only)]
        if not chosen:
            sys.exit(f"there is no scenario {' '.join(options.only)}")
    else:
        part, parts = (int(word) for word in options.part.split("/"))
        lines = read_records(record)
        done = {line["id"] for line in lines if (line["commit"], line["seed"]) == (commit, options.seed)}
        chosen = [one for place, one in enumerate(scenarios) if place % parts == part - 1 and one.id not in done]
    return chosen[: options.count]


def _do(scenario: Scenario, shop: Workshop, record: Path, commit: str) -> str:
    began = time.monotonic()
    try:
        verdict, noted = scenario.do(shop)
    except BrokenError as error:
        verdict, noted = Verdict(BROKEN, str(error)), {}
    # One that cannot be done is told in the tables, and the others are done.
    except Exception:
        verdict, noted = Verdict(BROKEN, traceback.format_exc()[-2000:]), {}
        shop.close()
    line = {"id": scenario.id, "kind": scenario.kind, "commit": commit, "seed": shop.seed}
    line |= {"time": datetime.now(UTC).isoformat()} | verdict.record() | noted
    add_record(record, line | {"seconds": round(time.monotonic() - began, 1)})
    wrong = f": {'; '.join(noted.get('at', []))}: {verdict.differs or verdict.said}" if verdict.word in WRONG else ""
    print(f"{time.monotonic() - began:5.1f} s  {scenario.id}: {verdict.word}{wrong}", flush=True)
    return verdict.word


def commit_of(root: Path) -> str:
    """The commit of the sources, with a mark where they are changed."""
    said = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=9"], cwd=root, capture_output=True)
    return said.stdout.decode().strip()


if __name__ == "__main__":
    sys.exit(main())

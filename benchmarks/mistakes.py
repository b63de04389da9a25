r"""Seconds until the mistakes of a recipe are told: the ten most common ones alone, several together, a foreign recipe.

    python -m benchmarks.mistakes --against ../before --rounds 5 --output benchmarks/results/mistakes-cpu.json

Each call is a process, `hpt-trl check RECIPE`, as a user waits for it. What a call names is mended in the recipe, and
the command given again, until all that was planted has been told: where mistakes are told one at a time, a recipe with
eight of them takes eight calls. With `--against` the same is done in another checkout of this repository, in turn with
this one; of the rounds the median counts. The ratio is that of the other checkout's seconds to ours (above 1: ours is
faster).
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from benchmarks.shared import ROOT, parser_of, processors, write_report

HERE, OTHER = "here", "there"
# A recipe at which nothing is wrong.
SOUND = {
    "stage": "grpo",
    "model_name_or_path": "tiny-vlm",
    "dataset_name": "arithmetic",
    "reward_funcs": ["math_answer"],
    "per_device_train_batch_size": 8,
    "num_generations": 8,
    "output_dir": "out",
}
# What is wrong -> the keys that say it; None for a key that is missing.
TEN = {
    "a misspelt key": {"learning_rat": 1e-5},
    "a key of an older release": {"torch_dtype": "bfloat16"},
    "a word for a number": {"max_steps": "many"},
    "a number out of range": {"learning_rate": -1},
    "a misspelt choice": {"optim": "adamw_torc"},
    "a misspelt reward": {"reward_funcs": ["math_answr"]},
    "a model that is not there": {"model_name_or_path": "models/nowhere/at-all"},
    "a file that is not there": {"dataset_name": "nowhere.jsonl"},
    "a batch that does not divide": {"global_batch_size": 7},
    "an unknown tracker": {"report_to": "wanbd"},
}
TOGETHER = {key: value for planted in TEN.values() for key, value in planted.items() if key != "global_batch_size"}
# The keys of alignment-handbook's recipes that are none here.
FOREIGN = {
    "stage": None,
    "torch_dtype": "bfloat16",
    "chat_template": "{{ messages }}",
    "warmup_ratio": 0.1,
    "max_seq_length": 2048,
    "overwrite_output_dir": True,
    "hub_model_revision": "v1",
}
CASES = TEN | {"nine of them together": TOGETHER, "a recipe of alignment-handbook": FOREIGN}


class Told(NamedTuple):
    """What it took until all was told.

    Attributes:
        calls: of the command. seconds: of all calls together.
    """

    calls: int
    seconds: float


def main() -> None:
    """Runs the rounds, prints the table, and writes the figures where a file is named."""
    parser = parser_of(__doc__)
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", type=int, default=len(CASES), help="the first of them alone")
    options = parser.parse_args()

    sides = {HERE: ROOT} | ({} if options.against is None else {OTHER: options.against.resolve()})
    names = list(CASES)[: options.cases]
    rounds: dict[str, dict[str, list[Told]]] = {name: {side: [] for side in sides} for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for place, name in enumerate(names):
                # In turn, also which of the two comes first.
                for side in sorted(sides, reverse=bool((number + place) % 2)):
                    rounds[name][side].append(told(CASES[name], sides[side], Path(folder)))
    report = {
        "machine": f"{len(processors())} x {processors()[0]}",
        "rounds": options.rounds,
        "mistakes": {name: figures(of_sides) for name, of_sides in rounds.items()},
    }
    print(table(report["mistakes"]))
    print(json.dumps({key: value for key, value in report.items() if key != "mistakes"}))
    write_report(report, options.output)


def told(planted: dict[str, object], checkout: Path, folder: Path) -> Told:
    """Plants mistakes in a recipe, and mends what each call names until all have been named.

    Raises:
        RuntimeError: a call named none of those that are left.
    """
    left, calls, seconds = dict(planted), 0, 0.0
    environment = {**os.environ, "PYTHONPATH": str(checkout), "COLUMNS": "1000"}
    path = folder / "recipe.yaml"
    while left:
        values = {key: value for key, value in (SOUND | left).items() if value is not None}
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        start = time.perf_counter()
        command = [sys.executable, "-m", "hpt_trl", "check", path.name]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        seconds += time.perf_counter() - start
        calls += 1
        named = [key for key in left if re.search(rf"`{key}`|\b{key}: ", done.stderr)]
        if done.returncode != 2 or not named:
            raise RuntimeError(f"{checkout}: {', '.join(left)} not told (exit code {done.returncode}): {done.stderr}")
        left = {key: value for key, value in left.items() if key not in named}
    return Told(calls, seconds)


def figures(sides: dict[str, list[Told]]) -> dict[str, dict[str, float]]:
    """Of each side the calls and the median seconds; of the other one also the median of the rounds' own ratios."""
    found: dict[str, dict[str, float]] = {
        side: {
            "calls": max(one.calls for one in of_side),
            "seconds": round(statistics.median(one.seconds for one in of_side), 2),
        }
        for side, of_side in sides.items()
    }
    if OTHER in sides:
        ratios = [there.seconds / here.seconds for there, here in zip(sides[OTHER], sides[HERE], strict=True)]
        found[OTHER]["times_here"] = round(statistics.median(ratios), 1)
    return found


def table(report: dict[str, dict[str, dict[str, float]]]) -> str:
    """The figures as lines of text."""
    compared = any(OTHER in sides for sides in report.values())
    lines: list[Sequence[str]] = [
        ("MISTAKE", "CALLS", "SECONDS", *(("CALLS THERE", "SECONDS THERE", "RATIO") if compared else ()))
    ]
    for name, sides in report.items():
        values = [value for side in (HERE, OTHER) for value in sides.get(side, {}).values()]
        lines.append((name, *(f"{value:g}" for value in values)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


if __name__ == "__main__":
    main()

"""A whole step of ours against stock GRPOTrainer's: generation by transformers, rewards, update; in all and by phase.

    python -m benchmarks.whole_step                        # SmolLM2-135M; a stock step is minutes on two cores
    python -m benchmarks.whole_step --stages hpt --profile build/whole_step.txt
    python -m benchmarks.whole_step --output benchmarks/results/whole_step-cpu.json

Prompts, demonstrations and kinds of prompts are those of `benchmarks.update_phase`, groups of 8; what differs is that
completions are sampled, up to `--completion` tokens of them. A reward says by the prompt's kind whether its rollouts
fail, solve, or do so in turn: `grpo`, `hpt` and `ppo` have half of the prompts failing, a quarter solved and a quarter
mixed. `ppo` and its stock side have the same coefficient of the KL to the reference; against a PPO there is
`benchmarks.ppo_against_trl speed`.

Each side is a process of its own in its own `.train()`; they take turns step by step, who goes first alternates, and
each round gives one ratio, ours / stock; the first round warms up. The median is printed. Below 1 is less time.

    phases       exclusive wall time; `scoring` is what is neither generation nor rewards before the update: old and
                 reference log-probabilities, values, advantages, how rows are dealt; `forward` has the loss
    positions    that the trunks of policy, reference and value model compute, and which share of them is padding: no
                 token of a row, or fed to a row that has ended while others are generated
    peak memory  resident size less that before the model is loaded, of two steps in a process that is alone; freed
                 memory goes back to the system at once there (MALLOC_MMAP_THRESHOLD_). On a GPU, what was allocated
"""

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import logging

from benchmarks.phases import PHASES
from benchmarks.shared import hardware, parser_of, write_report
from benchmarks.step_workers import STAGES, Setup
from benchmarks.workers import Worker, WorkerFailed
from hpt_trl.models.whole_models import resolve_model

SIDES = ("ours", "stock")
# Phases that are told together as well.
SUMS = {
    "update": ("forward", "backward", "optimizer"),
    "all but generation": tuple(phase for phase in PHASES if phase != "generation"),
}
# Less of a stock step is no time to make a ratio of, in seconds.
_SHORTEST = 0.005
Steps = dict[str, list[dict[str, Any]]]


def started(setup: Setup, folder: Path, **variables: str) -> Worker:
    """A side that waits to be told."""
    name = f"{setup.stage}-{setup.side}"
    return Worker(
        sys.executable, "benchmarks.step_workers", asdict(setup), name=name, folder=folder, variables=variables
    )


def measure_time(setups: dict[str, Setup], folder: Path, rounds: int, minutes: float | None) -> Steps:
    """Steps of both sides, which take turns; a profiled one follows where it is asked for."""
    steps: Steps = {side: [] for side in setups}
    begin = time.perf_counter()
    with ExitStack() as stack:
        workers = {side: stack.enter_context(started(setup, folder)) for side, setup in setups.items()}
        for turn in range(rounds + 1):
            start = time.perf_counter()
            found = {side: workers[side].update() for side in (SIDES if turn % 2 else SIDES[::-1])}
            print(
                f"{f'round {turn}' if turn else 'warm-up'}: ours {found['ours']['seconds']:.2f} s, "
                f"stock {found['stock']['seconds']:.2f} s",
                flush=True,
            )
            if turn:
                for side, step in found.items():
                    steps[side].append(step)
            now = time.perf_counter()
            if turn and minutes and now - begin + (now - start) > 60 * minutes:
                break
    return steps


def measure_alone(setup: Setup, folder: Path, **variables: str) -> dict[str, Any]:
    """The last of the side's steps, in a process that is alone."""
    found: dict[str, Any] = {}
    with started(setup, folder, **variables) as worker:
        for _ in range(setup.steps):
            found = worker.update()
    return found


def summarize(steps: Steps) -> dict[str, Any]:
    """Ratios ours / stock of the whole step, of its phases and of the positions; the shares of padding."""

    def ratios(of: Any) -> dict[str, float | None]:
        ours, stock = ([of(step) for step in steps[side]] for side in SIDES)
        found: dict[str, float | None] = {
            "ours_s": round(statistics.median(ours), 3),
            "stock_s": round(statistics.median(stock), 3),
            "ratio_median": None,
        }
        if min(stock) >= _SHORTEST:
            each = [own / other for own, other in zip(ours, stock, strict=True)]
            found |= {"ratio_median": round(statistics.median(each), 3)}
            found |= {"ratio_min": round(min(each), 3), "ratio_max": round(max(each), 3)}
        return found

    counts = {side: _positions(steps[side]) for side in SIDES}
    kept = [step["rows_kept"] for step in steps["ours"] if "rows_kept" in step]
    return {
        "rounds": len(steps["ours"]),
        **ratios(lambda step: step["seconds"]),
        "phases": {
            name: ratios(lambda step, parts=parts: sum(step["phases"][part] for part in parts))
            for name, parts in ({phase: (phase,) for phase in PHASES} | SUMS).items()
        },
        "positions": counts,
        "positions_ratio": round(counts["ours"]["all"]["positions"] / counts["stock"]["all"]["positions"], 3),
        "mean_length": {side: round(statistics.mean(step["mean_length"] for step in steps[side]), 1) for side in SIDES},
        **({"rows_kept": round(statistics.mean(kept), 4)} if kept else {}),
    }


def _positions(steps: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Positions of a step and their share of padding, by phase and of all."""
    sums = {phase: [0, 0] for phase in (*PHASES, "all")}
    for step in steps:
        for phase, (computed, tokens) in step["positions"].items():
            for name in (phase, "all"):
                sums[name][0] += computed
                sums[name][1] += tokens
    return {
        phase: {"positions": round(computed / len(steps)), "padding": round(1 - tokens / computed, 4)}
        for phase, (computed, tokens) in sums.items()
        if computed
    }


def show(stage: str, found: dict[str, Any]) -> None:
    """Prints a stage's figures as rows of Markdown tables."""
    print(f"\n| {stage}, {found['rounds']} rounds | ours (s) | stock (s) | ours / stock |\n|---|---|---|---|")
    for name, times in (("whole step", found), *found["phases"].items()):
        ratio = "" if times["ratio_median"] is None else f"{times['ratio_median']:.2f}"
        if ratio and name == "whole step":
            ratio += f" ({times['ratio_min']:.2f} to {times['ratio_max']:.2f})"
        print(f"| {name} | {times['ours_s']:.2f} | {times['stock_s']:.2f} | {ratio} |")
    ours, stock = (found["positions"][side] for side in SIDES)
    print(f"\n| {stage} | ours: positions | padding | stock: positions | padding |\n|---|---|---|---|---|")
    for phase in stock | ours:
        cells = [
            text
            for side in (ours, stock)
            for text in ((f"{side[phase]['positions']:,}", f"{side[phase]['padding']:.1%}") if phase in side else "  ")
        ]
        print(f"| {phase} | " + " | ".join(cells) + " |")
    kept = f"; rows kept {found['rows_kept']:.1%}" if "rows_kept" in found else ""
    print(f"\nPositions ours / stock {found['positions_ratio']:.2f}; mean length {found['mean_length']}{kept}")
    if "peak_gib" in found:
        peak = found["peak_gib"]
        print(f"Peak memory {peak['ours']:.2f} GiB, stock {peak['stock']:.2f} GiB: {peak['ratio']:.2f}")


def main(words: list[str] | None = None) -> dict[str, Any]:
    parser = parser_of(__doc__)
    parser.add_argument("--stages", nargs="+", default=["grpo", "hpt", "ppo"], choices=list(STAGES))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--completion", type=int, default=128, help="most tokens of a completion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, help="of a stage: begin no round that would end later")
    parser.add_argument("--float32", action="store_true", help="no bf16 autocast")
    parser.add_argument("--no_memory", action="store_true", help="leave the peaks out")
    parser.add_argument("--profile", help="write the operators that take most of a step of each side to this file")
    arguments = parser.parse_args(words)
    logging.set_verbosity_error()
    report: dict[str, Any] = {"model": arguments.model, **hardware(), "bf16": not arguments.float32, "stages": {}}
    report["completion"] = arguments.completion
    tables = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def setup(stage: str, side: str, steps: int, profiled: Path | None = None) -> Setup:
            return Setup(
                stage=stage,
                side=side,
                model=resolve_model(arguments.model),
                output_dir=str(folder / "run"),
                steps=steps,
                completion=arguments.completion,
                bf16=not arguments.float32,
                profiled=None if profiled is None else str(profiled),
            )

        try:
            for stage in arguments.stages:
                sides = {side: setup(stage, side, arguments.rounds + 1) for side in SIDES}
                found = summarize(measure_time(sides, folder, arguments.rounds, arguments.minutes))
                report["stages"][stage] = found
                if not arguments.no_memory:
                    alone = {"MALLOC_MMAP_THRESHOLD_": "65536"}
                    peak = {side: measure_alone(setup(stage, side, 2), folder, **alone)["peak_gib"] for side in SIDES}
                    found["peak_gib"] = peak | {"ratio": round(peak["ours"] / peak["stock"], 3)}
                show(stage, found)
                write_report(report, arguments.output)
                for side in SIDES if arguments.profile else ():
                    measure_alone(setup(stage, side, 2, folder / "profile.txt"), folder)
                    tables.append(f"{stage}, {side}\n\n{(folder / 'profile.txt').read_text()}")
                    Path(arguments.profile).write_text("\n".join(tables))
        except WorkerFailed as error:
            sys.exit(str(error))
    return report


if __name__ == "__main__":
    main()

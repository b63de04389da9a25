"""Time and memory of a Rho-1 step beside SFTTrainer's, and what scoring the cache costs.

    python -m benchmarks.rho1_step --output benchmarks/results/rho1_step-cpu.json

A Llama of SmolLM2-135M's shape (30 layers, width 576, a vocabulary of 49,152) with random weights, on rows of random
tokens without padding. Four sides:

    sft           trl.SFTTrainer
    cached-0.6    Rho1Trainer, 60 % of the tokens, the reference's losses from disk
    cached-0.3    the same with 30 %
    online-0.6    the same with 60 % and a reference of the same size beside the training

Time: the sides take turns in one process; each turn is one `.train()` of one optimizer step, timed from the beginning
of the training to the end of the step, so that a batch's way through the collator counts. Each round gives a ratio,
side / sft; their median is printed, below 1 is faster.

Memory: each side trains in a process of its own. Its peak there is the most that the process (on a GPU: its allocator)
ever held, the opening of the cache with its check included.

Scoring: rounds of filling an empty cache, writing and all, beside rounds of plain forward passes of the same model on
the same batches, to the logits and no further; as a ratio of tokens per second, above 1 is faster.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from benchmarks.shared import parser_of, write_report
from benchmarks.steps import now, one_step, rows, save_models, take_turns, timed
from hpt_trl import Rho1Config, Rho1Trainer
from hpt_trl.token_scores.cache import ScoreCache
from hpt_trl.token_scores.kinds import REFERENCE_NLL
from hpt_trl.token_scores.reference import load_reference
from hpt_trl.token_scores.reference_scores import reference_nll
from hpt_trl.token_scores.scoring import Scorer, fill, row_table

SIDES: dict[str, dict[str, Any] | None] = {
    "sft": None,
    "cached-0.6": {"select_ratio": 0.6, "reference_mode": "cached"},
    "cached-0.3": {"select_ratio": 0.3, "reference_mode": "cached"},
    "online-0.6": {"select_ratio": 0.6, "reference_mode": "online"},
}


def build(side: str, folder: Path, arguments: argparse.Namespace) -> Any:
    """The trainer of a side; its `timer` has the time of the last step."""
    settings = SIDES[side]
    common = one_step(folder, arguments)
    if settings is None:
        trainer_class: type = SFTTrainer
        config = SFTConfig(**common)
    else:
        reference: dict[str, Any] = {
            "reference_model_name_or_path": str(folder / "reference"),
            "reference_cache_dir": str(folder / "scores"),
        }
        trainer_class, config = Rho1Trainer, Rho1Config(**common, **reference, **settings)
    return timed(trainer_class, config, folder, arguments)


def measure_time(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    trainers = {side: build(side, folder, arguments) for side in arguments.sides}
    times = take_turns(trainers, arguments.rounds)
    return {
        side: {
            "seconds": round(statistics.median(own), 3),
            **_ratios([one / sft for one, sft in zip(own, times["sft"], strict=True)]),
        }
        for side, own in times.items()
    }


def measure_memory(folder: Path, words: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for side in arguments.sides:
        command = [sys.executable, "-m", "benchmarks.rho1_step", *words, "--memory_of", side, "--folder", str(folder)]
        root = Path(__file__).resolve().parents[1]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root).stdout
        found[side] = json.loads(printed.splitlines()[-1])
        found[side]["ratio"] = round(found[side]["peak_gib"] / found["sft"]["peak_gib"], 3)
    return found


def memory_of(side: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Trains two steps; returns the peak of this process, in GiB."""
    before = _peak()
    trainer = build(side, folder, arguments)
    for _ in range(2):
        trainer.train()
    return {"peak_gib": round(_peak() / 2**30, 3), "imports_gib": round(before / 2**30, 3)}


def _peak() -> int:
    """The most memory held so far, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Not `ru_maxrss`, which a process takes over from the one that started it.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure_scoring(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = Rho1Config(
        str(folder / "run"),
        reference_model_name_or_path=str(folder / "reference"),
        reference_dtype="float32",
        bf16=False,
    )
    model: Any = load_reference(config, device)
    collate = DataCollatorForLanguageModeling(pad_token_id=0)
    data = rows(arguments.scored_rows, arguments, seed=1)
    data = data.add_column("labels", data["input_ids"])

    def autocast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16)

    def fill_cache(turn: int) -> ScoreCache:
        cache = ScoreCache(folder / "scored" / str(turn), {}, REFERENCE_NLL)
        scorer = Scorer(REFERENCE_NLL, lambda: model, reference_nll, device, autocast)
        fill(cache, data, collate, scorer, row_table(data, REFERENCE_NLL), batch_size=arguments.rows)
        return cache

    @torch.no_grad()
    def pass_forward() -> None:
        for start in range(0, len(data), arguments.rows):
            batch = collate([data[row] for row in range(start, min(start + arguments.rows, len(data)))])
            inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
            with autocast():
                model(**inputs, use_cache=False)

    shutil.rmtree(folder / "scored", ignore_errors=True)
    times: dict[str, list[float]] = {"fill": [], "forward": []}
    for turn in range(arguments.rounds + 1):
        steps: list[tuple[str, Callable[[], Any]]] = [("fill", partial(fill_cache, turn)), ("forward", pass_forward)]
        for name, step in steps if turn % 2 else reversed(steps):
            started = now()
            step()
            if turn:
                times[name].append(now() - started)
    cache = fill_cache(0)  # which is filled already
    tokens = len(data) * arguments.tokens
    return {
        "tokens_per_second": round(tokens / statistics.median(times["fill"])),
        "forward_tokens_per_second": round(tokens / statistics.median(times["forward"])),
        **_ratios([forward / own for own, forward in zip(times["fill"], times["forward"], strict=True)]),
        "bytes_per_token": round(cache.size / cache.tokens, 3),
        "scored_tokens": cache.tokens,
    }


def _ratios(values: list[float]) -> dict[str, Any]:
    return {
        "ratio_median": round(statistics.median(values), 3),
        "ratio_min": round(min(values), 3),
        "ratio_max": round(max(values), 3),
    }


def main(words: list[str] | None = None) -> dict[str, Any]:
    words = sys.argv[1:] if words is None else words
    parser = parser_of(__doc__)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--rows", type=int, default=8, help="of a step")
    parser.add_argument("--tokens", type=int, default=256, help="of a row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--scored_rows", type=int, default=32, help="rows of a round of scoring; 0: leave it out")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--no_memory", action="store_true", help="leave the peaks out")
    parser.add_argument("--folder", help="for models and scores; by default a temporary one")
    parser.add_argument("--memory_of", choices=list(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.memory_of:
        found = memory_of(arguments.memory_of, Path(arguments.folder), arguments)
        print(json.dumps(found))
        return found
    if arguments.sides[0] != "sft":
        parser.error("--sides: all ratios are against sft; name it first.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        save_models(folder, arguments)
        report: dict[str, Any] = {
            "settings": {key: value for key, value in vars(arguments).items() if key not in ("output", "folder")},
            "hardware": torch.cuda.get_device_name()
            if torch.cuda.is_available()
            else f"{torch.get_num_threads()} CPU threads",
            "torch": torch.__version__,
        }
        report["time"] = measure_time(folder, arguments)
        if not arguments.no_memory:
            report["memory"] = measure_memory(folder, words, arguments)
        if arguments.scored_rows:
            report["scoring"] = measure_scoring(folder, arguments)
    write_report(report, arguments.output)
    show(report)
    return report


def show(report: dict[str, Any]) -> None:
    """Prints the ratios."""
    memory = report.get("memory", {})
    for side, found in report["time"].items():
        held = f"; peak {memory[side]['peak_gib']:.2f} GiB, {memory[side]['ratio']:.2f} of sft's" if memory else ""
        print(f"{side:<11} {found['seconds']:7.2f} s, {_shown(found)} of sft's{held}")
    if "scoring" in report:
        found = report["scoring"]
        print(
            f"scoring     {found['tokens_per_second']} tokens/s, {_shown(found)} of a plain forward pass; "
            f"{found['bytes_per_token']:.2f} bytes a token"
        )


def _shown(found: dict[str, Any]) -> str:
    return f"{found['ratio_median']:.3f} ({found['ratio_min']:.3f} to {found['ratio_max']:.3f})"


if __name__ == "__main__":
    main()

"""Time of HPT's update phase against stock GRPOTrainer's, on the same rollouts.

    python -m benchmarks.update_phase                      # SmolLM2-135M; a stock step is about a minute on two cores
    python -m benchmarks.update_phase --output benchmarks/results/update_phase-cpu.json

Sampling is replaced by preset completions, so that a step is everything but generation: tokenizing, rewards, routing,
forward, backward and the optimizer, through `.train()`. The two trainers take turns step by step in one process and
each round gives one ratio, ours / stock; the median is printed. Below 1 is faster.

Lengths: prompts of 40 to 130 tokens, completions of 20 to 120, demonstrations of 30 to 120. Three mixes of prompts:

    hpt       half failing, a quarter all solved, a quarter mixed; group 8, so 31 % of the rows carry a gradient
    no        strategy `no`, every group mixed: nothing can be dropped
    solved    half all solved, half mixed, gate -1: plain GRPO that skips dead rows
"""

import json
import platform
import random
import statistics
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.gate import now
from benchmarks.shared import parser_of, write_report
from hpt_trl import HybridPostConfig, HybridPostTrainer
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.models.whole_models import resolve_model

GROUP = 8
MIXES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "hpt": (["fail"] * 4 + ["solve"] * 2 + ["mixed"] * 2, {"unify_strategy": "switch"}),
    "no": (["mixed"] * 8, {"unify_strategy": "no"}),
    "solved": (["solve"] * 4 + ["mixed"] * 4, {"switch_gate": -1}),
}
WORDS = ["one", "two", "three", "four", "five", "six", "and", "the", "sum", "of", "all", "then", "minus"]


class PresetRollouts:
    """Mixin for a GRPOTrainer: the completions of a prompt are drawn once, from its index in the batch."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any):
        eos, completions = self._tokenizer.eos_token_id, []
        for index in range(len(prompt_ids)):
            draw = random.Random(index)
            completions.append([draw.randrange(1000, 20000) for _ in range(draw.randrange(20, 120))] + [eos])
        return completions, None


class StepTimer(TrainerCallback):
    """Wall time of each optimizer step, in seconds."""

    def __init__(self):
        self.times: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = now()

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(now() - self._start)


def rewards(completion_ids: list[list[int]], kind: list[str], **_: Any) -> list[float]:
    """0, 1, or alternating within a mixed group."""
    fixed = {"fail": 0.0, "solve": 1.0}
    return [fixed.get(name, float(index % 2)) for index, name in enumerate(kind)]


def rows(kinds: list[str]) -> Dataset:
    draw = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randrange(low, high)))

    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": text(15, 100)}],
                "completion": [{"role": "assistant", "content": text(30, 115)}],
                "kind": kind,
            }
            for kind in kinds
        ]
    )


def build(
    trainer_class: type, config_class: type, model: str, kinds: list[str], callback: TrainerCallback, **settings: Any
) -> Any:
    """A trainer on rows of these kinds, whose step is one generation batch.

    Args:
        settings: of the config, above those that the benchmarks share.
    """
    shared = {
        "output_dir": "outputs/benchmark",
        "num_generations": GROUP,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": len(kinds),
        "max_completion_length": 128,
        "max_steps": 1,
        "learning_rate": 1e-9,
        "loss_type": "grpo",
        "gradient_checkpointing": False,
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return trainer_class(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        rewards,
        config_class(**shared | settings),
        rows(kinds),
        processing_class=load_tokenizer(model),
        callbacks=[callback],
    )


class PresetGRPO(PresetRollouts, GRPOTrainer):
    pass


class PresetHPT(PresetRollouts, HybridPostTrainer):
    pass


def measure(mix: str, model: str, rounds: int) -> dict[str, Any]:
    kinds, settings = MIXES[mix]
    timers = our_timer, stock_timer = StepTimer(), StepTimer()
    stock = build(PresetGRPO, GRPOConfig, model, kinds, stock_timer)
    ours = build(PresetHPT, HybridPostConfig, model, kinds, our_timer, **settings)
    pairs = []
    for turn in range(rounds + 1):
        # Whichever goes first alternates; the very first pair warms up.
        order = (stock, ours) if turn % 2 else (ours, stock)
        for trainer in order:
            trainer.train()
        if turn:
            pairs.append([timer.times[-1] for timer in timers])
    ratios = [a / b for a, b in pairs]
    log = next(entry for entry in reversed(ours.state.log_history) if "hpt/rows_kept" in entry)
    return {
        "mix": mix,
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "rounds": rounds,
        "ours_s": round(statistics.median(a for a, _ in pairs), 2),
        "stock_s": round(statistics.median(b for _, b in pairs), 2),
        "rows_kept": round(log["hpt/rows_kept"], 4),
        "padding": round(log["hpt/padding"], 3),
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--mixes", nargs="+", default=list(MIXES), choices=list(MIXES))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    model = resolve_model(arguments.model)
    results = []
    for mix in arguments.mixes:
        results.append(measure(mix, model, arguments.rounds))
        print(json.dumps(results[-1]), flush=True)
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    report = {"model": arguments.model, "hardware": hardware, "torch": torch.__version__, "results": results}
    report["python"] = platform.python_version()
    write_report(report, arguments.output)
    for result in results:
        print(
            f"{result['mix']:8s} ours/stock {result['ratio_median']:.3f} "
            f"(min {result['ratio_min']:.3f}, max {result['ratio_max']:.3f}, {result['rounds']} rounds); "
            f"rows kept {result['rows_kept']:.1%}, padding {result['padding']:.1%}"
        )


if __name__ == "__main__":
    main()

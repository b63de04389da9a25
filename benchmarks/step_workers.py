"""One side of `benchmarks.whole_step`: a trainer that makes one step at a time, when it is told to.

    python -m benchmarks.step_workers settings.json FD      # started by the benchmark, not by hand

See `benchmarks.gate`. Beside the time of a step its phases, positions and the peak of the memory are reported.
"""

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.gate import Finished, Gate
from benchmarks.phases import Phases, Positions
from benchmarks.shared import process_bytes
from benchmarks.update_phase import GROUP, MIXES, build
from hpt_trl import HybridPostConfig, HybridPostTrainer, PPOConfig, PPOTrainer
from hpt_trl.rollouts.acting import ActingTrainer
from hpt_trl.rollouts.config import RolloutConfig

# Coefficient of the KL to the reference, on both sides of `ppo`.
KL = 0.05
# Of the trainers -> their names in a report.
_METRICS = {"completions/mean_length": "mean_length", "hpt/rows_kept": "rows_kept"}


@dataclass(frozen=True)
class Side:
    """A trainer on one side of a comparison, and its settings."""

    trainer: type
    config: type
    settings: dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """Two trainers on the same prompts.

    Attributes:
        kinds: of each prompt, whether its rollouts `fail`, `solve` or are `mixed`.
    """

    kinds: list[str]
    ours: Side
    stock: Side


_STOCK = Side(GRPOTrainer, GRPOConfig, {})
STAGES = {
    "grpo": Stage(MIXES["hpt"][0], Side(ActingTrainer, RolloutConfig, {}), _STOCK),
    "hpt": Stage(MIXES["hpt"][0], Side(HybridPostTrainer, HybridPostConfig, MIXES["hpt"][1]), _STOCK),
    "hpt-no": Stage(MIXES["no"][0], Side(HybridPostTrainer, HybridPostConfig, MIXES["no"][1]), _STOCK),
    "hpt-solved": Stage(MIXES["solved"][0], Side(HybridPostTrainer, HybridPostConfig, MIXES["solved"][1]), _STOCK),
    "ppo": Stage(
        MIXES["hpt"][0],
        Side(PPOTrainer, PPOConfig, {"kl_coef": KL}),
        Side(GRPOTrainer, GRPOConfig, {"beta": KL}),
    ),
}


@dataclass(frozen=True)
class Setup:
    """What a side is given.

    Attributes:
        side: `ours` or `stock`.
        steps: that it will be told to make.
        profiled: a profile of the last step is written to this file.
    """

    stage: str
    side: str
    model: str
    output_dir: str
    steps: int
    completion: int
    bf16: bool
    profiled: str | None


class StepGate(Gate):
    """A gate that watches what a step is made of."""

    def __init__(self, setup: Setup, reports: TextIO):
        super().__init__(1, {}, reports)
        self._setup, self._steps, self._before = setup, 0, _held("VmRSS")
        self._phases = Phases()
        self._positions: Positions
        self._metrics: dict[str, list[float]]
        self._profile: profile | None = None

    def watch(self, trainer: Any) -> None:
        self._phases.watch(trainer)
        self._metrics = trainer._metrics["train"]
        tokenizer = trainer.processing_class
        self._positions = Positions(self._phases, {tokenizer.pad_token_id, tokenizer.eos_token_id})
        for model in (trainer.model, trainer.ref_model):
            if model is not None:
                self._positions.watch(model)

    def wait(self) -> None:
        super().wait()
        self._steps += 1
        self._phases.take()
        if self._setup.profiled is not None and self._steps == self._setup.steps:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profile = profile(activities=activities)
            self._profile.start()

    def more(self) -> dict[str, Any]:
        found: dict[str, Any] = {"phases": self._phases.take(), "positions": self._positions.take()}
        # They are logged after the end of the step.
        found |= {name: self._metrics[key][-1] for key, name in _METRICS.items() if key in self._metrics}
        # What is held before the model is: the libraries.
        found["peak_gib"] = round((_held("VmHWM") - self._before) / 2**30, 3)
        if self._profile is not None:
            self._profile.stop()
            device = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            table = self._profile.key_averages().table(sort_by=device, row_limit=25, max_name_column_width=50)
            assert self._setup.profiled is not None
            Path(self._setup.profiled).write_text(table + "\n")
        return found


def _held(field: str) -> int:
    """The most that the GPU has allocated, or what the system says of this process, in bytes."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else process_bytes(field)


def trainer_of(setup: Setup, reports: TextIO) -> Any:
    """The trainer of a side, which waits at its gate."""
    stage = STAGES[setup.stage]
    side: Side = getattr(stage, setup.side)
    gate = StepGate(setup, reports)
    trainer = build(
        side.trainer,
        side.config,
        setup.model,
        stage.kinds,
        gate,
        output_dir=setup.output_dir,
        max_steps=setup.steps,
        max_completion_length=setup.completion,
        bf16=setup.bf16,
        **{"num_generations": GROUP} | side.settings,
    )
    trainer.remove_callback(PrinterCallback)
    gate.watch(trainer)
    return trainer


def main() -> None:
    setup = Setup(**json.loads(Path(sys.argv[1]).read_text()))
    with os.fdopen(int(sys.argv[2]), "w") as reports, suppress(Finished):
        trainer_of(setup, reports).train()


if __name__ == "__main__":
    main()

"""Times, tokens, loss and memory of a run over all its attempts: each checkpoint holds what was spent until then."""

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from hpt_trl.files import write_atomically

TOTALS_FILE = "totals.json"


@dataclass
class Totals:
    """What a run has spent.

    Attributes:
        total_s: wall time, preparation and loading included.
        train_s: of it in training steps and checkpoints.
        evaluation_s: of it in the evaluations before and after.
        loss: sum of the training loss over the steps.
        tokens: of the training.
        peak_memory: of the first process, in bytes.
    """

    total_s: float = 0.0
    train_s: float = 0.0
    evaluation_s: float = 0.0
    loss: float = 0.0
    tokens: int = 0
    peak_memory: int = 0


def stored_totals(checkpoint: Path | None) -> Totals:
    """What was spent until a checkpoint; nothing where there is none, or it was written by another program."""
    file = None if checkpoint is None else checkpoint / TOTALS_FILE
    if file is None or not file.is_file():
        return Totals()
    return Totals(**json.loads(file.read_text(encoding="utf-8")))


class Accounts(TrainerCallback):
    """Keeps the totals of a run.

    Args:
        checkpoint: where the run goes on; None for a new one.
        started: when this attempt began, by `time.perf_counter`.
    """

    def __init__(self, checkpoint: Path | None, started: float):
        self.earlier = stored_totals(checkpoint)
        self.started = started
        self.train_started = started
        self.evaluation_s = 0.0
        self.trainer: Any = None
        self._first_step = 0
        self._loss: float | None = None  # of this attempt, once it has ended

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first_step = state.global_step
        # Trainers that count tokens by themselves begin anew at each start.
        if "_total_train_tokens" in vars(self.trainer):
            self.trainer._total_train_tokens = self.earlier.tokens

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        # The trainer's closing figure is of this attempt's steps alone.
        if logs and "train_loss" in logs:
            self._loss = logs["train_loss"] * (state.global_step - self._first_step)
            logs["train_loss"] = (self.earlier.loss + self._loss) / max(state.global_step, 1)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / TOTALS_FILE
            write_atomically(file, json.dumps(asdict(self.now())) + "\n")

    def now(self) -> Totals:
        """The totals up to this moment."""
        moment, earlier, trainer = time.perf_counter(), self.earlier, self.trainer
        loss = self._loss
        if loss is None:
            loss = trainer._total_loss_scalar + float(trainer._tr_loss) if "_tr_loss" in vars(trainer) else 0.0
        return Totals(
            total_s=earlier.total_s + moment - self.started,
            train_s=earlier.train_s + moment - self.train_started - self.evaluation_s,
            evaluation_s=earlier.evaluation_s + self.evaluation_s,
            loss=earlier.loss + loss,
            tokens=training_tokens(trainer),
            peak_memory=max(earlier.peak_memory, peak_memory(trainer.accelerator.device)),
        )


def training_tokens(trainer: Trainer) -> int:
    """RL trainers count in the trainer's state, the others by themselves."""
    own = vars(trainer).get("_total_train_tokens", 0)
    return round(trainer.state.num_input_tokens_seen or own)


def peak_memory(device: torch.device) -> int:
    """Most memory that this process has held, in bytes: of its GPU, else of its own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # ru_maxrss is in KiB, on macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

"""What a run has spent and seen over all its attempts: times, tokens, training loss and memory.

A run that was stopped goes on from a checkpoint; what it had spent until then stands in the checkpoint's trainer
state. What an attempt did after its last checkpoint is done again, and counts once.
"""

import sys
import time
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from hpt_trl.methods.held_out import HeldOutMeasures

# Where a checkpoint's trainer state keeps them, beside the states of transformers' own callbacks.
_STATE = "hpt_trl.totals"


@dataclass
class Totals:
    """Sums over the attempts of a run.

    Attributes:
        seconds, training_seconds, evaluation_seconds: wall time; the last two are parts of the first.
        loss: sum of the training loss over the steps, nats.
        steps: optimizer steps that these figures are of.
        tokens: trained on.
        peak_bytes: most memory at a time, of any attempt.
    """

    seconds: float = 0.0
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    loss: float = 0.0
    steps: int = 0
    tokens: int = 0
    peak_bytes: int = 0


class RunTotals(TrainerCallback):
    """Adds up what a run spends; each checkpoint has the totals of that moment, which a resumed run goes on from."""

    def __init__(self, started: float):
        self.started = started
        self.training_since = started
        self.trainer: Any = None
        # Of this attempt; whoever evaluates adds to it.
        self.evaluation_seconds = 0.0
        self.earlier = Totals()
        self._loss, self._first_step, self._closed = 0.0, 0, False
        self._training_seconds: float | None = None

    def training_begins(self, trainer: Trainer) -> None:
        self.trainer, self.training_since = trainer, time.perf_counter()

    def training_ends(self) -> None:
        self._training_seconds = self._training_time()
        if not self._closed:
            # A training that had no step left says nothing; what it would say was of the attempt that was killed.
            self.trainer.log({"total_flos": self.trainer.state.total_flos, "train_loss": 0.0})

    def attempt_seconds(self) -> float:
        """Wall time of this attempt so far."""
        return time.perf_counter() - self.started

    def now(self) -> Totals:
        """The totals of the whole run so far."""
        own = Totals(
            seconds=self.attempt_seconds(),
            training_seconds=self._training_time() if self._training_seconds is None else self._training_seconds,
            evaluation_seconds=self.evaluation_seconds,
            loss=self._loss,
            steps=self.trainer.state.global_step - self._first_step,
        )
        summed = {field.name: getattr(own, field.name) + getattr(self.earlier, field.name) for field in fields(Totals)}
        summed["tokens"] = training_tokens(self.trainer)
        summed["peak_bytes"] = max(self.earlier.peak_bytes, peak_memory(self.trainer.accelerator.device))
        return Totals(**summed)

    def train_loss(self) -> float | None:
        """Mean training loss over the steps of the whole run, None where it took none."""
        totals = self.now()
        return totals.loss / totals.steps if totals.steps else None

    def _training_time(self) -> float:
        return time.perf_counter() - self.training_since - self.evaluation_seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first_step = state.global_step
        self.earlier = Totals(**state.stateful_callbacks.get(_STATE, {}))
        if state.global_step > 0 and isinstance(self.trainer, HeldOutMeasures):
            self.trainer.resume_token_count(self.earlier.tokens)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._log_what_is_saved(args, control)
        self._note(state, unlogged=True)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._log_what_is_saved(args, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        # The total lacks what came since the training's last log. The trainer's closing figure has it, and later logs,
        # of an evaluation, would count it twice.
        self._closed = self._closed or "train_loss" in logs
        self._note(state, unlogged=not self._closed)
        if "train_loss" in logs:
            # The trainer's closing figure is of this attempt alone.
            logs["train_loss"] = self.train_loss()

    def _log_what_is_saved(self, args: Any, control: Any) -> None:
        # What the trainers average from log to log is in no checkpoint: without a log here, the first one after a
        # resume would leave out the steps before it.
        if control.should_save and args.logging_strategy != "no":
            control.should_log = True

    def _note(self, state: Any, *, unlogged: bool) -> None:
        self._loss = self.trainer._total_loss_scalar + (self.trainer._tr_loss.item() if unlogged else 0.0)
        state.stateful_callbacks[_STATE] = asdict(self.now())


def training_tokens(trainer: Trainer) -> int:
    """Tokens trained on: RL trainers count in the trainer's state, those that measure held-out rows themselves."""
    if isinstance(trainer, HeldOutMeasures):
        return trainer.trained_tokens
    logged = [line["num_tokens"] for line in trainer.state.log_history if "num_tokens" in line]
    return trainer.state.num_input_tokens_seen or round(logged[-1] if logged else 0)


def peak_memory(device: torch.device) -> int:
    """Most memory that this process has held at a time, in bytes: on its GPU, else in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    # ru_maxrss is in KiB, on macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

"""What a training tells while it runs: a line of metrics.jsonl per log, a bar with the time left, and short lines."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerState
from transformers.trainer_utils import has_length
from transformers.utils import logging

from hpt_trl.files import valid_json, write_atomically
from hpt_trl.progress import Bar
from hpt_trl.reading import read_metrics
from hpt_trl.run_files import METRICS_FILE

# Metric -> its name on the progress lines; only those that a run logs are shown.
_PROGRESS = {
    "reward": "reward",
    "hpt/solved_mean": "solved",
    "hpt/sft_fraction": "demonstrations",
    "hpt/demo_nll": "demo nll",
    "rho1/selected_loss": "selected loss",
    "rho1/unselected_loss": "unselected loss",
    "rho1/mean_excess": "excess",
    "ppo/kl": "KL",
    "ppo/value_loss": "value loss",
    "vrag/searches": "searches",
    "vrag/answered": "answered",
    "vrag/invalid_actions": "invalid",
    "vrag/recall": "recall",
    "completions/mean_length": "length",
    "accuracy": "accuracy",
    "rewards/accuracies": "accuracy",
    "margin": "margin",
    "rewards/margins": "margin",
    "mean_token_accuracy": "token accuracy",
    "loss": "loss",
    "eval_loss": "held-out loss",
    "eval_accuracy": "held-out accuracy",
    "eval_rewards/accuracies": "held-out accuracy",
}

# The trainer's closing figures count the evaluation before training as training time; results.json has them apart.
_SPEEDS = tuple(
    f"{mode}_{name}"
    for mode in ("train", "eval")
    for name in ("runtime", "samples_per_second", "steps_per_second", "num_tokens", "model_preparation_time")
)


class MetricsWriter(TrainerCallback):
    """Appends one JSON line per log to `output_dir`/metrics.jsonl: step, epoch and every metric, NaN and inf as null.

    A resumed run keeps the lines that its checkpoint knows of, and writes them anew where they are not there, as in
    another folder; a new run starts an empty file.
    """

    def __init__(self, output_dir: str | Path):
        self.path = Path(output_dir) / METRICS_FILE

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept: list[dict[str, Any]] = []
        history = state.log_history if state.global_step > 0 else []
        if history and self.path.exists():
            # A run that was killed may have left half a line; whatever comes after the checkpoint is done again, also
            # what a run says after its last step.
            lines = read_metrics(self.path.parent, tolerant=True)
            known = sum(entry["step"] == state.global_step for entry in history)
            kept = [line for line in lines if line["step"] < state.global_step]
            kept += [line for line in lines if line["step"] == state.global_step][:known]
        if len(kept) < len(history):
            kept = [_line(entry["step"], entry.get("epoch"), entry) for entry in history]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics_line(state, logs), allow_nan=False) + "\n")


def metrics_line(state: TrainerState, logs: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    return _line(state.global_step, state.epoch, logs)


def _line(step: int, epoch: float | None, logs: dict[str, Any]) -> dict[str, Any]:
    metrics = {key: value for key, value in logs.items() if key not in ("step", "epoch", *_SPEEDS)}
    return valid_json({"step": step, "epoch": epoch} | metrics)


def progress_text(logs: dict[str, Any]) -> str:
    """What a progress line says of a log: the few metrics that are followed while a run trains."""
    return "  ".join(
        f"{name} {logs[key]:.3g}" for key, name in _PROGRESS.items() if isinstance(logs.get(key), int | float)
    )


class ProgressLines(ProgressCallback):
    """A progress bar with the time left, and a short line per log; the time left in it where there is no terminal."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.training_bar = Bar(state.max_steps, "Training", "steps", initial=state.global_step)
        self.current_step = state.global_step

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if state.is_world_process_zero and self.prediction_bar is None and has_length(eval_dataloader):
            self.prediction_bar = Bar(len(eval_dataloader), "Held-out rows", "batches")
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or not logs or "train_runtime" in logs:
            return
        line = f"step {state.global_step}/{state.max_steps}  {progress_text(logs)}"
        if self.training_bar.is_plain and state.global_step < state.max_steps:
            line += f"  ({self.training_bar.left()} left)"
        print(line, flush=True)


@contextmanager
def without_library_bars() -> Iterator[None]:
    """Inside, transformers draws no bars of its own, as for a checkpoint's files: the training's is there."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

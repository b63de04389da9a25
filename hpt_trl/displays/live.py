"""Curves that grow while a run trains: one display that is drawn anew, in a notebook; short lines elsewhere."""

import time
from typing import Any

from transformers import TrainerCallback, TrainerState

from hpt_trl import pictures
from hpt_trl.displays.showing import in_notebook, rendered
from hpt_trl.reading import duration
from hpt_trl.runs.curves import figure_of
from hpt_trl.runs.progress import metrics_line, progress_text

# The share of the time that drawing may take.
_SHARE = 0.05


class LiveCurves(TrainerCallback):
    """Shows a training while it runs; a callback of any trainer of transformers and TRL.

    Args:
        title: Above the curves.
    """

    def __init__(self, title: str = "") -> None:
        self.title = title
        self.lines: list[dict[str, Any]] = []
        self._in_notebook = in_notebook()
        self._status: Any = None
        self._picture: Any = None
        self._next_drawing = self._started = 0.0
        self._first_step = self._step = self._steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started, self._first_step = time.monotonic(), state.global_step
        self._step, self._steps = state.global_step, state.max_steps
        # What was logged before the checkpoint of a resumed run; the trainer's state has it, whoever wrote it.
        self.lines = [_line_of(logs) for logs in state.log_history if "train_runtime" not in logs]
        self.say("the first step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step = state.global_step
        if self._in_notebook and state.is_world_process_zero:
            self.say(self._said())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        self.lines.append(metrics_line(state, logs))
        if not self._in_notebook:
            print(f"step {state.global_step}/{state.max_steps}  {progress_text(logs)}", flush=True)
        elif time.monotonic() >= self._next_drawing:
            self.draw()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.say(self._said())
        self.draw()

    def finish(self, results: dict[str, Any] | None) -> None:
        """Shows the last state of a run, with its evaluations.

        Args:
            results: results.json of a run that has finished.
        """
        # What trains nothing has taken no step.
        if self._steps:
            self.say(self._said())
            self.draw(results)

    def say(self, text: str) -> None:
        """Shows a line of text beside the bar; nothing outside of a notebook."""
        if not self._in_notebook:
            return
        said = f"step {self._step} of {self._steps}, {text}" if self._steps else text
        bundle = {
            "text/plain": said,
            "text/html": rendered("live.html.jinja", step=self._step, steps=self._steps or 1, said=said),
        }
        self._status = _shown(bundle, self._status)

    def draw(self, results: dict[str, Any] | None = None) -> None:
        """Draws the curves anew; nothing outside of a notebook, and before anything that can be drawn was logged.

        Args:
            results: results.json of a run that has finished, for the evaluations before and after.
        """
        if not self._in_notebook:
            return
        began = time.monotonic()
        try:
            figure = figure_of(self.lines, results, self.title)
        except ValueError:  # no metric that can be drawn, yet
            return
        self._picture = _shown(
            {"image/png": pictures.png(figure, dpi=90), "text/plain": f"{self.title}: curves"}, self._picture
        )
        now = time.monotonic()
        self._next_drawing = now + (now - began) / _SHARE

    def _said(self) -> str:
        last: dict[str, Any] = next((line for line in reversed(self.lines) if progress_text(line)), {})
        if self._step >= self._steps:
            return progress_text(last)
        done = self._step - self._first_step
        left = (time.monotonic() - self._started) / max(done, 1) * (self._steps - self._step)
        return f"about {duration(left)} left  {progress_text(last)}"


def _line_of(logs: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl from an entry of the trainer's history."""
    metrics = {key: value for key, value in logs.items() if key not in ("step", "epoch")}
    return metrics_line(TrainerState(global_step=logs["step"], epoch=logs.get("epoch", 0.0)), metrics)


def _shown(bundle: dict[str, Any], handle: Any) -> Any:
    """Shows a bundle of types, in place of what the handle shows; returns the handle."""
    from IPython.display import display

    if handle is None:
        return display(bundle, raw=True, display_id=True)
    handle.update(bundle, raw=True)
    return handle

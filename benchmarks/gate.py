"""What a process of a benchmark runs on: a trainer that makes one update when it is told to, inside of its `.train()`.

Each line `go` on stdin lets it run until the update is over. What that took is a line of JSON on the file descriptor
that it was given, since trainers print on stdout. Anything else on stdin, or its end, ends the training.
"""

import json
import sys
import time
from typing import Any, TextIO

import torch
from transformers import TrainerCallback


class Finished(Exception):
    """The benchmark wants no further update."""


class Gate(TrainerCallback):
    """Holds the trainer before each update until it may go, and reports the one that is over.

    Args:
        steps_per_update: the trainer's own steps.
        names: of its metrics -> of the figures.

    Attributes:
        figures: taken along into the next report.
    """

    def __init__(self, steps_per_update: int, names: dict[str, str], reports: TextIO):
        self.steps_per_update, self.reports, self._names = steps_per_update, reports, names
        self.figures: dict[str, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.wait()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.figures |= {name: logs[key] for key, name in self._names.items() if key in (logs or {})}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps_per_update == 0:
            self.report()
            self.wait()

    def report(self) -> None:
        times = {"seconds": now() - self._start, "cpu_seconds": time.process_time() - self._cpu_start}
        print(json.dumps(times | self.figures | self.more()), file=self.reports, flush=True)
        self.figures = {}

    def more(self) -> dict[str, Any]:
        """Figures that are taken when the clock has been read."""
        return {}

    def wait(self) -> None:
        if sys.stdin.readline().strip() != "go":
            raise Finished
        self._start, self._cpu_start = now(), time.process_time()


def now() -> float:
    """The clock in seconds, with what a GPU was given done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()

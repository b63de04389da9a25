"""Ctrl-C while a run trains: the step is finished and saved as a checkpoint, from which the run can go on."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback

from hpt_trl.runs.going_on import after_interrupt
from hpt_trl.signals import Interrupted

_SAID = b"\nCtrl-C: this step is finished and saved as a checkpoint. Once more ends the run at once.\n"


class SaveOnInterrupt(TrainerCallback):
    """Saves a checkpoint and ends the training after the step in which Ctrl-C came; a second one ends it at once.

    Between the steps alone it can be saved what the next run goes on from. It has to be the last callback: where the
    training begins, the evaluation before it is over, which Ctrl-C ends as anything else.
    """

    def __init__(self) -> None:
        self.asked = False
        self.ending = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        here = threading.current_thread() is threading.main_thread()
        if here and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end(args, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end(args, control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.ending:
            self._restore()
            raise KeyboardInterrupt

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._restore()

    def _note(self, number: int, frame: object) -> None:
        self.asked = True
        self._restore()
        if PartialState().is_main_process:
            # Not by a stream: the signal may have come while it writes.
            os.write(2, _SAID)

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _end(self, args: Any, control: Any) -> None:
        # Processes get the signal one after the other, and have to save after the same step.
        state, asked = PartialState(), self.asked
        if state.num_processes > 1:
            asked = bool(reduce(torch.tensor([float(asked)], device=state.device), "sum").item())
        if asked:
            self.ending = True
            # Without the optimizer's state nothing could go on from it.
            args.save_only_model = False
            control.should_save = True


@contextmanager
def holding_interrupts() -> Iterator[None]:
    """Holds Ctrl-C back while files are written that belong together; it comes into effect after them."""
    came = []
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not (is_ours and threading.current_thread() is threading.main_thread()):
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


@contextmanager
def interrupts_explained(folder: str | Path, command: list[str], *, goes_on: bool = False) -> Iterator[None]:
    """While open, Ctrl-C ends with what is left in the folder and how to go on; see `after_interrupt`.

    Raises:
        Interrupted: Ctrl-C.
    """
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(after_interrupt(Path(folder), command, goes_on=goes_on)) from None

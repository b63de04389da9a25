"""Small callbacks of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import ProgressCallback, Trainer, TrainerCallback

from hpt_trl.runs.checkpoints import PROCESSES_FILE


class AtTrainBegin(TrainerCallback):
    """Calls a function when everything is ready for the first step."""

    def __init__(self, function: Callable[[], None]):
        self.function = function

    def on_train_begin(self, args, state, control, **kwargs):
        self.function()


class NothingLeft(Exception):
    """The checkpoint is of the last step."""


class EndWhereDone(TrainerCallback):
    """Ends a training that goes on from its last step, for which Trainer would take one step more."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            raise NothingLeft


class NoteProcesses(TrainerCallback):
    """Notes in each checkpoint how many processes wrote it, once all of them have.

    Each writes a part; without the note a checkpoint of several processes may lack one.
    """

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        processes = PartialState()
        processes.wait_for_everyone()
        if processes.is_main_process and processes.num_processes > 1:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (checkpoint / PROCESSES_FILE).write_text(f"{processes.num_processes}\n")


def close_bars(trainer: Trainer) -> None:
    """Ends the bars of a training that does not come to its end, which would be drawn once more when Python ends."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
            callback.on_train_end(trainer.args, trainer.state, trainer.control)

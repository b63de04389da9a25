"""Small callbacks of a run."""

from collections.abc import Callable
from typing import Any

from transformers import ProgressCallback, Trainer, TrainerCallback


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


def close_bars(trainer: Trainer) -> None:
    """Ends the bars of a training that does not come to its end, which would be drawn once more when Python ends."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
            callback.on_train_end(trainer.args, trainer.state, trainer.control)

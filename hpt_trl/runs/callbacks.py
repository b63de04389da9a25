"""Small callbacks of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, Trainer, TrainerCallback

from hpt_trl.errors import UserError
from hpt_trl.runs.best import best_of
from hpt_trl.settings.values import did_you_mean


class AtTrainBegin(TrainerCallback):
    """Calls a function when everything is ready for the first step."""

    def __init__(self, function: Callable[[], None]):
        self.function = function

    def on_train_begin(self, args, state, control, **kwargs):
        self.function()


class KnowsBest(TrainerCallback):
    """Finds the best checkpoint of a run that goes on, which the base takes for gone once the folder was moved.

    Refuses a `metric_for_best_model` that no evaluation gives; the base raises where it looks for it.
    """

    def __init__(self, checkpoint: Path | None):
        self.checkpoint = checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.checkpoint is not None:
            best = best_of(self.checkpoint, Path(args.output_dir))
            state.best_model_checkpoint = None if best is None else str(best)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The base looks for it at every evaluation, whatever it is asked for.
        if args.metric_for_best_model is None:
            return
        asked, metrics = str(args.metric_for_best_model), kwargs.get("metrics") or {}
        known = sorted(name for name in metrics if name.startswith("eval_"))
        if known and f"eval_{asked.removeprefix('eval_')}" not in known:
            raise UserError(
                f"metric_for_best_model: the evaluation gives no `{asked}`; allowed: {', '.join(known)}."
                f"{did_you_mean(f'eval_{asked}', known)}"
            )


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

"""Warnings of a training that goes nowhere: said while it runs, kept for reading, and where asked for its end."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback

from hpt_trl.errors import UserError
from hpt_trl.reading import read_metrics
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.run_files import METRICS_FILE, WARNINGS_FILE
from hpt_trl.runs.signs import KINDS, NO_TOKENS, Warned, Watch
from hpt_trl.runs.warnings_file import read_warnings, write_warnings
from hpt_trl.settings.values import did_you_mean

logger = logging.getLogger(__name__)

ALL = "all"


def check_warnings(recipe: Recipe) -> None:
    """Refuses kinds of warnings that there are not.

    Raises:
        UserError: the first of them.
    """
    for kind in recipe.arguments.stop_on_warnings or []:
        if kind not in (*KINDS, ALL):
            raise recipe.error(
                "stop_on_warnings",
                f"there is no warning `{kind}`; allowed: {', '.join(KINDS)}, or {ALL}.{did_you_mean(kind, KINDS)}",
            )


class Warnings(TrainerCallback):
    """Says each sign of `hpt_trl.runs.signs` once, and ends the training at those that the recipe names.

    Args:
        recipe: Its `stop_on_warnings` are the kinds that end the training.
        tell: Is told of each warning as well: step, kind, message; in the first process.
    """

    def __init__(self, recipe: Recipe, tell: Callable[[int, str, str], None]):
        stops = recipe.arguments.stop_on_warnings or []
        self.stops = set(KINDS if ALL in stops else stops)
        self.folder = Path(recipe.config.output_dir)
        self.tell = tell
        self.kept: list[dict[str, Any]] = []
        self.trainer: Any = None
        self._watch = Watch()
        self._reason: dict[str, Any] | None = None
        self._ended_at: int | None = None

    def watch(self, trainer: Trainer) -> None:
        """Look at every step's batches for a token that is trained on."""
        self.trainer = trainer
        stock = trainer.get_batch_samples

        def watched(*args: Any, **kwargs: Any) -> Any:
            batches, items = stock(*args, **kwargs)
            rows = sum(map(_rows, batches))
            if rows and (_supervised(batches) if items is None else int(items)) == 0:
                self._say_no_tokens(rows)
            return batches, items

        trainer.get_batch_samples = watched  # type: ignore[method-assign]

    def _say_no_tokens(self, rows: int) -> None:
        if NO_TOKENS in self._watch.said:
            return
        self._watch.said.add(NO_TOKENS)
        message = (
            f"none of the {rows} rows of this step has a token that is trained on (all labels are -100): it teaches "
            "nothing. Look whether `max_length` cuts the answers off, and at the keys that choose what is trained "
            "(`train_on_turns`, `assistant_only_loss`, `completion_only_loss`)."
        )
        self._say(self.trainer.state.global_step + 1, [Warned(NO_TOKENS, message)])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero or state.global_step == 0:
            return
        # What an earlier attempt has seen and said up to its checkpoint; the rest is done again.
        self.kept = [line for line in read_warnings(self.folder) if line["step"] <= state.global_step]
        if (self.folder / WARNINGS_FILE).exists():
            write_warnings(self.folder, self.kept)
        if (self.folder / METRICS_FILE).exists():
            for line in read_metrics(self.folder, tolerant=True):
                if line["step"] <= state.global_step:
                    self._watch.observe(line)
        self._watch.said |= {line["kind"] for line in self.kept}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._say(state.global_step, self._watch.observe(logs or {}))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.stops:
            return
        if self.trainer.accelerator.num_processes > 1:
            # Figures may differ by rounding: the first process decides, and all end together.
            self._reason = broadcast_object_list([self._reason])[0]
        if self._reason is not None and state.global_step < state.max_steps:
            self._ended_at = state.global_step
            control.should_save = control.should_training_stop = True

    def _say(self, step: int, found: list[Warned]) -> None:
        if not self.trainer.is_world_process_zero():
            return
        for kind, message in found:
            logger.warning("step %d: %s", step, message)
            line = {"step": step, "kind": kind, "message": message}
            self.kept.append(line)
            write_warnings(self.folder, self.kept)
            self.tell(step, kind, message)
            if kind in self.stops and self._reason is None:
                self._reason = line

    def refuse_ended(self) -> None:
        """Ends a run whose training was ended early.

        Raises:
            UserError: it was; the message says by what, and what it has left.
        """
        if self._ended_at is not None and self._reason is not None:
            raise UserError(
                f"the training was ended after step {self._ended_at}, as `stop_on_warnings` asks for "
                f"{self._reason['kind']}: {self._reason['message']} There are no results; the model as it was lies in "
                f"{self.folder / f'checkpoint-{self._ended_at}'}, from where it goes on all the same by "
                "`--resume_from_checkpoint true`."
            )

    def refuse_seen(self) -> None:
        """Ends a run that was warned of by its last log, once all it has is written.

        Raises:
            UserError: it was, of a kind that is to end the run.
        """
        if self._reason is not None:
            raise UserError(
                f"the last steps of the training show {self._reason['kind']}, which `stop_on_warnings` names: "
                f"{self._reason['message']} Model and results are in {self.folder}."
            )


def _rows(batch: Any) -> int:
    """Rows of a batch that says which of its tokens are trained on; 0 of any other."""
    mask = _mask(batch)
    return 0 if mask is None else len(mask)


def _supervised(batches: list[Any]) -> int:
    return sum(int(_mask(batch).sum()) for batch in batches)


def _mask(batch: Any) -> Any:
    """Which tokens of a batch are trained on: by their labels, or of pairs by the mask of the answers."""
    if not isinstance(batch, Mapping):
        return None
    labels = batch.get("labels")
    if isinstance(labels, torch.Tensor) and labels.ndim > 1:
        return labels[:, 1:] != -100
    # Rollouts have theirs once they are drawn.
    mask = batch.get("completion_mask") if "input_ids" in batch else None
    return mask[:, 1:] if isinstance(mask, torch.Tensor) and mask.ndim > 1 else None

"""The attempts that a run took, one after a resume each: what of it each did, and what had changed.

They are kept in the trainer's state, so those that a checkpoint has are known; an attempt that came to none is not.
"""

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hpt_trl.recipes.recipe import Recipe
from hpt_trl.runs.record import versions
from hpt_trl.runs.resuming import changes_since
from hpt_trl.runs.totals import RunTotals

# Where a checkpoint's trainer state keeps them.
_STATE = "hpt_trl.attempts"


@dataclass
class Attempt:
    """One attempt.

    Attributes:
        from_step: optimizer step that it went on from; 0 at the start.
        to_step: that it came to, as far as it is known.
        started: time of its first step.
        seconds: wall time up to `to_step`.
        processes: how many there were.
        versions: of the libraries.
        changed: key -> value before and now, of the recipe's keys that may differ.
    """

    from_step: int
    to_step: int
    started: str
    seconds: float
    processes: int
    versions: dict[str, str]
    changed: dict[str, list[Any]]


class Attempts(TrainerCallback):
    """Notes an attempt beside those before it."""

    def __init__(self, recipe: Recipe, checkpoint: Path | None, totals: RunTotals):
        self.recipe, self.totals = recipe, totals
        found = [] if checkpoint is None else changes_since(recipe, checkpoint)
        self._changed = {change.key: [change.was, change.now] for change in found}
        self._earlier: list[dict[str, Any]] = []
        self._own: Attempt | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._earlier = list(state.stateful_callbacks.get(_STATE, {}).get("attempts", []))
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        step = state.global_step
        self._own = Attempt(step, step, started, 0.0, self.recipe.world_size, versions(), self._changed)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self._own is not None
        self._own.to_step = state.global_step
        state.stateful_callbacks[_STATE] = {"attempts": self.all()}

    def all(self) -> list[dict[str, Any]]:
        """Every attempt that is known, this one last."""
        if self._own is None:
            return self._earlier
        self._own.seconds = self.totals.attempt_seconds()
        return [*self._earlier, asdict(self._own)]

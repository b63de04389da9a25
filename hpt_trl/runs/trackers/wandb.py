"""Weights & Biases: transformers' callback, with a run that this package begins, fills and ends."""

import os
from typing import Any

from transformers.integrations import WandbCallback

from hpt_trl.errors import UserError
from hpt_trl.runs.trackers.run import TrackedRun
from hpt_trl.runs.trackers.settings import MaskedArguments
from hpt_trl.runs.trackers.tables import Table


class WandbTracker(WandbCallback):
    """`WandbCallback` whose run has the recipe's project, name and settings, and goes on where the run does.

    wandb's own variables (WANDB_PROJECT, WANDB_NAME, WANDB_RUN_ID, ...) stand above the recipe.
    """

    def __init__(self, run: TrackedRun):
        super().__init__()
        self.run = run
        self._own = False

    def open(self) -> None:
        # A run that the user has begun is logged to, and left open.
        if self._wandb.run is None:
            self._begin()
        self._wandb.config.update(self.run.settings, allow_val_change=True)

    def _begin(self) -> None:
        run, variables = self.run, os.environ
        # Given by name: wandb reads its variables once in a process, before a recipe's `env` may set them.
        name = variables.get("WANDB_NAME") or run.name
        project = variables.get("WANDB_PROJECT") or run.project
        # In an offline run the same id is enough: it is put together when both are uploaded.
        known = variables.get("WANDB_RUN_ID") or run.earlier("wandb").get("id")
        again: dict[str, Any] = (
            {} if known is None else {"id": known, "resume": variables.get("WANDB_RESUME") or "allow"}
        )
        try:
            self._wandb.init(project=project, name=name, **again)
        except self._wandb.errors.Error as error:
            raise UserError(
                f"wandb did not begin the run: {error}. Look at `wandb login`, or set WANDB_MODE=offline to log into "
                "the folder `wandb` and upload it later (`wandb sync`)."
            ) from error
        self._own = True
        run.keep("wandb", id=self._wandb.run.id)

    def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.open()
        super().setup(MaskedArguments(args), state, model, **kwargs)

    def table(self, name: str, table: Table, step: int) -> None:
        shown = self._wandb.Table(columns=list(table.columns), data=table.rows, allow_mixed_types=True)
        self._wandb.log({name: shown, "train/global_step": step})

    def summarise(self, figures: dict[str, float], step: int) -> None:
        self._wandb.run.summary.update(figures)

    def warn(self, kind: str, message: str, step: int) -> None:
        self._wandb.run.alert(title=kind, text=message, level=self._wandb.AlertLevel.WARN)

    def close(self, *, failed: bool) -> None:
        if self._own and self._wandb.run is not None:
            self._wandb.finish(exit_code=1 if failed else 0)

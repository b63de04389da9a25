"""trackio: transformers' callback, with a run that this package names, fills and ends."""

import os
from datetime import datetime
from typing import Any

from transformers.integrations import TrackioCallback

from hpt_trl.runs.trackers.run import TrackedRun
from hpt_trl.runs.trackers.settings import MaskedArguments
from hpt_trl.runs.trackers.tables import Table


class TrackioTracker(TrackioCallback):
    """`TrackioCallback` whose run has the recipe's project, name and settings, and goes on where the run does.

    The base takes up any run of the same name; here a new run gets a name that no other has.
    """

    def __init__(self, run: TrackedRun):
        super().__init__()
        self.run = run
        self._ending: Any = None
        self._open = False

    def open(self) -> None:
        if self._open:
            return
        self._open, name = True, self._name()
        self._trackio.init(project=self.run.project, name=name, space_id=self.run.space, resume="allow")
        self._note(name)

    def _note(self, name: str) -> None:
        self._trackio.config.update(self.run.settings)
        self.run.keep("trackio", project=self.run.project, name=name)

    def _name(self) -> str:
        """The name of the earlier attempt, else one that the project does not have yet."""
        run = self.run
        earlier = run.earlier("trackio")
        if earlier.get("project") == run.project:
            return earlier["name"]
        if run.space or os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"):
            # What lies elsewhere is not asked for its names.
            return f"{run.name}-{datetime.now():%Y%m%d-%H%M%S}"
        try:
            taken = {other.name for other in self._trackio.Api().runs(run.project)}
        except ValueError:  # of a project that is new
            taken = set()
        names = [run.name, *(f"{run.name}-{number}" for number in range(2, len(taken) + 2))]
        return next(name for name in names if name not in taken)

    def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._open, args.run_name = True, self._name()
        super().setup(MaskedArguments(args), state, model, **kwargs)
        if state.is_world_process_zero:
            self._note(args.run_name)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        # What is measured after the training belongs to the run: the base ends it in `close`.
        self._ending = args, kwargs

    def table(self, name: str, table: Table, step: int) -> None:
        self._trackio.log({name: self._trackio.Table(columns=list(table.columns), data=table.rows)} | _at(step))

    def summarise(self, figures: dict[str, float], step: int) -> None:
        self._trackio.log(figures | _at(step))

    def warn(self, kind: str, message: str, step: int) -> None:
        self._trackio.alert(title=kind, text=message, level=self._trackio.AlertLevel.WARN)

    def close(self, *, failed: bool) -> None:
        if not self._open:
            return
        self._open = False
        if self._ending is None:
            self._trackio.finish()
        else:
            args, kwargs = self._ending
            super().on_train_end(*args, **kwargs)


def _at(step: int) -> dict[str, int]:
    return {"train/global_step": step}

"""What a run tells its trackers: its settings, samples of its rollouts, its held-out figures and its warnings."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.trainer import TRAINER_STATE_NAME

from hpt_trl.files import parsed_json
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.rollouts.trainer import RolloutTrainer
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.trackers.figures import figures_of
from hpt_trl.runs.trackers.run import TrackedRun, Tracker
from hpt_trl.runs.trackers.settings import settings_of
from hpt_trl.runs.trackers.tables import (
    SAMPLES,
    Table,
    every,
    held_out_samples,
    scored_completions,
    table_of,
    trained_rows,
)
from hpt_trl.runs.trackers.tensorboard import TensorBoardTracker
from hpt_trl.runs.trackers.trackio import TrackioTracker
from hpt_trl.runs.trackers.wandb import WandbTracker

# Name -> ours, and the callback of transformers that it is made of.
_KINDS: dict[str, tuple[Callable[[TrackedRun], Tracker], type[TrainerCallback]]] = {
    "wandb": (WandbTracker, WandbCallback),
    "trackio": (TrackioTracker, TrackioCallback),
    "tensorboard": (TensorBoardTracker, TensorBoardCallback),
}
# Where TRL's own `log_completions` leaves its table.
_HAVE_COMPLETIONS = ("wandb", "trackio")


class Tracking(TrainerCallback):
    """The trackers of a run; without one nothing is done. In all but the first process it is silent.

    Attributes:
        trackers: name -> the tracker, which in a training is one of the trainer's callbacks.
    """

    def __init__(self, recipe: Recipe, prepared: Prepared | None = None):
        config = recipe.config
        names = [name for name in config.report_to if name in _KINDS]
        run = TrackedRun(
            name=config.run_name,
            project=config.project,
            folder=Path(config.output_dir),
            settings=settings_of(recipe, prepared) if names else {},
            step=None if prepared is None else _step_of(prepared),
            space=recipe.setting("trackio_space_id"),
        )
        self.trackers: dict[str, Tracker] = {name: _KINDS[name][0](run) for name in names}
        self.prepared = prepared
        self.trainer: Any = None
        self._last_samples: int | None = None
        self._step = 0

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """What a training is to call: the trackers, then this."""
        return [*cast(list[TrainerCallback], list(self.trackers.values())), self] if self.trackers else []

    def watch(self, trainer: Trainer) -> None:
        """Stands for the callbacks of transformers that the trainer made itself by `report_to`."""
        self.trainer = trainer
        for name in self.trackers:
            # The first of a kind is the trainer's own.
            trainer.remove_callback(_KINDS[name][1])

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ends the run of each tracker with the block: as failed where an error leaves it."""
        failed = True
        try:
            yield
            failed = False
        finally:
            for tracker in self.trackers.values():
                tracker.close(failed=failed)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.global_step == 0:
            assert self.prepared is not None
            self._leave("training_rows", trained_rows(self.prepared.splits.train), 0)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._step = state.global_step
        if not state.is_world_process_zero or "reward" not in (logs or {}):
            return
        if isinstance(self.trainer, RolloutTrainer) and self._due(args, state):
            self._last_samples = state.global_step
            samples = self.trainer.samples(args.num_completions_to_print or SAMPLES)
            told = _HAVE_COMPLETIONS if args.log_completions else ()
            self._leave("samples", table_of(samples), state.global_step, left_out=told)

    def _due(self, args: Any, state: Any) -> bool:
        last, steps = self._last_samples, every(state.max_steps, state.logging_steps)
        return last is None or state.global_step - last >= steps

    def _leave(self, name: str, table: Table, step: int, left_out: tuple[str, ...] = ()) -> None:
        for tracker in [one for name_, one in self.trackers.items() if name_ not in left_out] if table else []:
            tracker.table(name, table, step)

    def warn(self, step: int, kind: str, message: str) -> None:
        """Leaves a warning of the run; the first process calls it."""
        for tracker in self.trackers.values():
            tracker.warn(kind, message, step)

    def trained(self, results: Mapping[str, Any]) -> None:
        """Leaves what a training came to; the first process calls it."""
        self._leave("held_out_samples", held_out_samples(results["before"], results["after"]), results["steps"])
        self._summarise(results, results["steps"])

    def measured(self, results: Mapping[str, Any], lines: list[dict[str, Any]]) -> None:
        """Leaves what an evaluation, or a search index, came to; the first process calls it."""
        for tracker in self.trackers.values():
            tracker.open()
        self._leave("completions", scored_completions(lines), 0)
        self._summarise(results, 0)

    def _summarise(self, results: Mapping[str, Any], step: int) -> None:
        for tracker in self.trackers.values():
            tracker.summarise(figures_of(results), step)


def _step_of(prepared: Prepared) -> int | None:
    """The step that a run goes on from; None for a new one, also from the checkpoint of another run."""
    checkpoint, folder = prepared.checkpoint, Path(prepared.recipe.config.output_dir)
    if checkpoint is None or checkpoint.resolve().parent != folder.resolve():
        return None
    state = parsed_json((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    return int(state["global_step"])

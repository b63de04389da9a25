"""TensorBoard: transformers' callback, with event files that this package begins, fills and ends."""

from typing import Any

from transformers.integrations import TensorBoardCallback

from hpt_trl.run_files import TENSORBOARD
from hpt_trl.runs.trackers.run import TrackedRun
from hpt_trl.runs.trackers.settings import MaskedArguments
from hpt_trl.runs.trackers.tables import Table


class TensorBoardTracker(TensorBoardCallback):
    """`TensorBoardCallback` with one folder for a run and what goes on with it, and the recipe's settings."""

    def __init__(self, run: TrackedRun):
        super().__init__()
        self.run = run
        if self.logging_dir is None:
            self.logging_dir = str(run.folder / TENSORBOARD / run.name)

    def open(self) -> None:
        if self.tb_writer is not None:
            return
        # Steps after the checkpoint are done again; TensorBoard forgets those of the earlier attempt.
        again = None if self.run.step is None else self.run.step + 1
        self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir, purge_step=again)
        if again is None:
            table = Table({"setting": list(self.run.settings), "value": list(map(str, self.run.settings.values()))})
            self.tb_writer.add_text("recipe", table.as_html())
        self.run.keep("tensorboard", folder=self.logging_dir)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.open()
        super().on_train_begin(MaskedArguments(args), state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        # What is not known of a step is no point of a curve; transformers warns of each.
        known = {name: value for name, value in (logs or {}).items() if value is not None}
        super().on_log(args, state, control, logs=known, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # What is measured after the training belongs to the run: the file is closed in `close`.
        if self.tb_writer is not None:
            self.tb_writer.flush()

    def table(self, name: str, table: Table, step: int) -> None:
        self.tb_writer.add_text(name, table.as_html(), step)

    def summarise(self, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            side, _, figure = name.partition("/")
            place = {"before": 0, "after": step}.get(side)
            if place is not None and not _of_uncertainty(figure):
                # Two points of one curve.
                self.tb_writer.add_scalar(f"held_out/{figure.removeprefix('held_out/')}", value, place)
        plain = {
            name: value for name, value in self.run.settings.items() if isinstance(value, bool | int | float | str)
        }
        # Into the run's own folder: by default the values of a run become another run.
        self.tb_writer.add_hparams(plain, figures, run_name=".", global_step=step)

    def warn(self, kind: str, message: str, step: int) -> None:
        self.tb_writer.add_text(f"warnings/{kind}", message, step)

    def close(self, *, failed: bool) -> None:
        if self.tb_writer is not None:
            self.tb_writer.close()
            self.tb_writer = None


def _of_uncertainty(figure: str) -> bool:
    """Whether a figure says how exactly others are known: it stands with the other values of the run alone."""
    return "error" in figure or "interval" in figure or figure.endswith("_rows")

"""Models kept along a run under names that say where it stood, and the best of them.

They are for use, not for going on: TRL's own checkpoints (`save_strategy`) hold the optimizer too, and come and go.
"""

import math
import shutil
from pathlib import Path

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hpt_trl.digests import note_digests
from hpt_trl.methods.held_out import measure_held_out
from hpt_trl.models.base_weights import noted_with
from hpt_trl.placing import clear_left, put_in_place

FOLDER = "checkpoints"
BEST = "best"


def checkpoint_steps(max_steps: int, fraction: float) -> dict[int, str]:
    """Returns step -> name for the multiples of a fraction below the whole run: {10: "20-percent", ...}.

    In a run of fewer steps than names, a step has the last name that falls on it.
    """
    # 1 / 0.1 is 10 and a little in some roundings.
    below_one = range(1, math.ceil(1 / fraction - 1e-9))
    steps = {max(round(max_steps * number * fraction), 1): number for number in below_one}
    return {step: f"{100 * number * fraction:g}-percent" for step, number in steps.items() if step < max_steps}


class KeptModels(TrainerCallback):
    """Saves the model at fractions of the run, measures the held-out loss there, and keeps the best in `best`.

    Any other evaluation of the run counts for the best as well, but for the one before the training.
    """

    def __init__(self, trainer: Trainer, fraction: float):
        self.trainer = trainer
        self.fraction = fraction

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.trainer.is_world_process_zero():
            # A run that was killed as it put a model in place has left the one before under another name.
            for name in (BEST, *checkpoint_steps(state.max_steps, self.fraction).values()):
                clear_left(Path(str(args.output_dir)) / FOLDER / name)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        name = checkpoint_steps(state.max_steps, self.fraction).get(state.global_step)
        if name is None:
            return
        self._save(name)
        if self.trainer.eval_dataset is not None and not control.should_evaluate:
            # Leaves the random state as it is: a run with checkpoints comes to the weights of one without.
            measure_held_out(self.trainer)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        # From the log, which a resumed run has as well.
        losses = held_out_losses(state)
        if losses and losses[-1][0] == state.global_step and best_of(losses) == losses[-1]:
            self._save(BEST)

    def _save(self, name: str) -> None:
        """Saves the model; every process takes part. The folder is complete or not there."""
        folder = Path(str(self.trainer.args.output_dir)) / FOLDER
        partial = folder / f".{name}.partial"
        writes, wait = self.trainer.is_world_process_zero(), self.trainer.accelerator.wait_for_everyone
        if writes:
            # Of a run that was killed while saving.
            shutil.rmtree(partial, ignore_errors=True)
        wait()
        self.trainer.save_model(str(partial), _internal_call=True)
        wait()
        if writes:
            note_digests(partial, base=noted_with(partial))
            put_in_place(partial, folder / name)


def held_out_losses(state: TrainerState) -> list[tuple[int, float]]:
    """Returns step and held-out loss of each evaluation since the training began, where it is a number."""
    return [
        (int(entry["step"]), entry["eval_loss"])
        for entry in state.log_history
        if entry["step"] > 0 and math.isfinite(entry.get("eval_loss", math.nan))
    ]


def best_of(losses: list[tuple[int, float]]) -> tuple[int, float]:
    """Returns the first of the lowest."""
    return min(losses, key=lambda pair: pair[1])


def kept(folder: Path, state: TrainerState) -> str | None:
    """Returns what a run has kept, for reading; None if nothing."""
    names = sorted((path.name for path in (folder / FOLDER).glob("*-percent")), key=lambda name: float(name[:-8]))
    losses = held_out_losses(state)
    if losses and (folder / FOLDER / BEST).is_dir():
        step, loss = best_of(losses)
        names.append(f"{BEST} (step {step} of {state.max_steps}, held-out loss {loss:.4g})")
    return f"{folder / FOLDER}: {', '.join(names)}" if names else None

"""The training of a run: its trainer, those who watch it, and what is written once it has ended."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from hpt_trl.models.safe_loading import deepspeed_loads_weights_only
from hpt_trl.reading import write_results
from hpt_trl.runs.attempts import Attempts
from hpt_trl.runs.before_after import Evaluations
from hpt_trl.runs.best import load_best
from hpt_trl.runs.building import build_trainer
from hpt_trl.runs.callbacks import AtTrainBegin, KnowsBest, NothingLeft, close_bars
from hpt_trl.runs.closing import draw_and_close
from hpt_trl.runs.health import Health, refuse_untrained
from hpt_trl.runs.hub import finish_on_hub, write_run_card
from hpt_trl.runs.interrupting import holding_interrupts
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.progress import without_library_bars
from hpt_trl.runs.quiet import say
from hpt_trl.runs.results import Outcome, results_of
from hpt_trl.runs.saving import save_final
from hpt_trl.runs.totals import RunTotals
from hpt_trl.runs.trackers.tracking import Tracking
from hpt_trl.runs.warned import Warnings


class Training:
    """A training that is prepared, and whose output folder is ready.

    Args:
        started: when its run did, by `time.perf_counter`.
        command: words that started it.
        tracking: has begun.
        live: shows it in place of the progress bar, its lines and what is printed at the end.
    """

    def __init__(
        self,
        prepared: Prepared,
        started: float,
        command: list[str],
        tracking: Tracking,
        live: TrainerCallback | None = None,
    ):
        self.prepared = prepared
        self._command, self._tracking, self._live = command, tracking, live
        self._totals, self._health = RunTotals(started), Health()
        self._attempts = Attempts(prepared.recipe, prepared.checkpoint, self._totals)
        self._warnings = Warnings(prepared.recipe, tracking.warn)
        self._evaluations = Evaluations(prepared, self._totals)

    def run(self) -> None:
        """Trains, saves the model, measures it and writes what was found.

        Raises:
            UserError: the training diverged, trained nothing, or ended at a warning at which it was to end.
        """
        if self._live is None:
            say("Loading the model" if self.prepared.model else "Making the model")
        trainer = self._built()
        self._train(trainer)
        self._totals.training_ends()
        self._warnings.refuse_ended()
        self._health.check_weights()
        # Saved before it is evaluated: whatever fails there, the model stays.
        with holding_interrupts():
            save_final(trainer)
        after = self._measured(trainer)
        own = self.prepared.recipe.stage.finish(trainer)
        why = self._health.why_untrained()
        if trainer.is_world_process_zero():
            self._close(trainer, after, own, why)
        # As Trainer.end does, which transformers 5.17 lacks.
        trainer.accelerator.end_training()
        refuse_untrained(why, trainer)
        finish_on_hub(self.prepared.recipe, trainer)
        self._warnings.refuse_seen()

    def _built(self) -> Trainer:
        # Who ends a training comes before those who note what a checkpoint has. The totals come before all that logs
        # and evaluates, the health before the evaluation that costs minutes.
        trainer = build_trainer(
            self.prepared,
            [AtTrainBegin(self._evaluations.before_training)],
            [
                KnowsBest(self.prepared.checkpoint),
                self._warnings,
                self._totals,
                self._attempts,
                self._health,
                *self._tracking.callbacks,
            ],
            self._live,
        )
        for watcher in (self._health, self._tracking, self._warnings):
            watcher.watch(trainer)
        self._evaluations.trainer = trainer
        return trainer

    def _train(self, trainer: Trainer) -> None:
        checkpoint = self.prepared.checkpoint
        if checkpoint is not None:
            # The start is behind it.
            trainer.args.eval_on_start = False
        self._totals.training_begins(trainer)
        try:
            safely = deepspeed_loads_weights_only() if trainer.is_deepspeed_enabled else nullcontext()
            with without_library_bars(), safely:
                try:
                    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
                except NothingLeft:
                    load_best(trainer)
        except KeyboardInterrupt:
            close_bars(trainer)
            raise
        except RuntimeError as error:
            if (explained := self._health.explained(error)) is None:
                raise
            raise explained from error

    def _measured(self, trainer: Trainer) -> dict[str, Any] | None:
        """The evaluation after the training."""
        after = self._evaluations.evaluate("After training")
        loss = (after or {}).get("held_out", {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise self._health.diverged(f"after step {trainer.state.global_step} the held-out loss is {loss}")
        return after

    def _close(
        self, trainer: Trainer, after: dict[str, Any] | None, own: dict[str, Any] | None, why_untrained: str | None
    ) -> None:
        """Writes results.json, the card and the curves, and prints the closing lines."""
        outcome = Outcome(
            before=self._evaluations.before,
            after=after,
            own=own,
            why_untrained=why_untrained,
            spent=self._totals.now(),
            train_loss=self._totals.train_loss(),
            warnings=self._warnings.kept,
            attempts=self._attempts.all(),
        )
        results = results_of(self.prepared, trainer, outcome, self._command)
        folder = Path(self.prepared.recipe.config.output_dir)
        write_results(folder, results)
        write_run_card(self.prepared.recipe)
        self._tracking.trained(results)
        draw_and_close(folder, results, printed=self._live is None)

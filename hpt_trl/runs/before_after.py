"""The evaluations of a training's model on the held-out rows, before its first step and after its last one."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from hpt_trl.errors import UserError
from hpt_trl.evaluation.intervals import wilson
from hpt_trl.evaluation.measuring import measure
from hpt_trl.evaluation.samples import SampleStore
from hpt_trl.files import valid_json, write_atomically
from hpt_trl.methods.held_out import RowMeasures, errors_of, measure_held_out, shares_of
from hpt_trl.reading import read_object, read_results
from hpt_trl.run_files import BEFORE_FILE, EVALUATIONS
from hpt_trl.runs.acting import rows_placed
from hpt_trl.runs.evaluating import answered_conditions, task_of, write_scored
from hpt_trl.runs.evaluation import evaluate
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.totals import RunTotals

# In before.json alone: what was measured of each held-out row.
_ROWS = "measured_rows"


class Evaluations:
    """Evaluates the trainer's model on the held-out rows and adds up the time that takes."""

    def __init__(self, prepared: Prepared, totals: RunTotals):
        self.prepared = prepared
        self.totals = totals
        self.trainer: Any = None
        self.before: dict[str, Any] | None = None
        # What was measured of each row before the training, for the error of the change.
        self.rows: list[RowMeasures] | None = None

    def before_training(self) -> None:
        path = Path(self.prepared.recipe.config.output_dir) / BEFORE_FILE
        if self.prepared.checkpoint is not None:
            # The model is the checkpoint's by now; what it could do before any training was found by the first run.
            stored: Any = [None, None]
            if self.trainer.is_world_process_zero():
                stored = list(_stored_before(path.parent))
            self.before, self.rows = broadcast_object_list(stored)
            return
        self.before = self.evaluate("Before training")
        if self.before is not None and self.trainer.is_world_process_zero():
            rows = None if self.rows is None else [asdict(row) for row in self.rows]
            stored = self.before | ({} if rows is None else {_ROWS: rows})
            write_atomically(path, json.dumps(valid_json(stored), ensure_ascii=False))

    def evaluate(self, description: str) -> dict[str, Any] | None:
        prepared, recipe = self.prepared, self.prepared.recipe
        measures = recipe.stage.measures_held_out and prepared.splits.test is not None
        if prepared.answered is None and not measures and not prepared.evaluations:
            return None
        started = time.perf_counter()
        result = {} if prepared.answered is None else self._answer(prepared.answered, description)
        if measures:
            result["held_out"] = measure_held_out(self.trainer)
            if self.trainer.held_out_rows:
                result |= self._errors(list(self.trainer.held_out_rows))
        if prepared.evaluations:
            result["evaluations"] = {
                name: self._measure(name, inner, description) for name, inner in prepared.evaluations.items()
            }
        self.totals.evaluation_seconds += time.perf_counter() - started
        return result

    def _measure(self, name: str, evaluation: Prepared, description: str) -> dict[str, Any]:
        """An evaluation that the recipe names; its completions lie in the output folder."""
        folder = Path(self.prepared.recipe.config.output_dir) / EVALUATIONS / name
        store, state = SampleStore(folder / description.split()[0].lower()), PartialState()
        if state.is_main_process:
            store.begin({"model": "of the training", **answered_conditions(evaluation)})
        state.wait_for_everyone()
        with rows_placed(evaluation.splits):
            result, lines = measure(
                task_of(evaluation),
                self.trainer.model_wrapped,
                store,
                accelerator=self.trainer.accelerator,
                trainer_state=self.trainer.state,
                description=f"{description}: {name}",
            )
        if state.is_main_process:
            write_scored(store.folder, lines)
        return result

    def _errors(self, rows: list[RowMeasures]) -> dict[str, Any]:
        """How many held-out rows there are, how exactly their measures are known, and the change since the start."""
        found: dict[str, Any] = {
            "held_out_rows": len(rows),
            "held_out_errors": errors_of(rows),
            "held_out_intervals": {name: list(wilson(share, len(rows))) for name, share in shares_of(rows).items()},
        }
        if self.rows is None:
            self.rows = rows
        elif len(self.rows) == len(rows):
            found["held_out_change_errors"] = errors_of(rows, self.rows)
        return found

    def _answer(self, rows: Dataset, description: str) -> dict[str, Any]:
        prepared, recipe = self.prepared, self.prepared.recipe
        return evaluate(
            self.trainer.model_wrapped,
            prepared.encoder,
            rows,
            prepared.rewards,
            reward_weights=prepared.judge_weights,
            success_reward=recipe.arguments.success_reward,
            success_threshold=prepared.success_threshold,
            trainer_state=self.trainer.state,
            max_new_tokens=prepared.eval_max_new_tokens,
            temperature=recipe.arguments.eval_temperature,
            num_generations=recipe.arguments.eval_num_generations,
            batch_size=recipe.config.per_device_eval_batch_size,
            seed=recipe.config.seed,
            accelerator=self.trainer.accelerator,
            description=description,
            acting=prepared.acting,
            rollouts_kept=None if prepared.acting is None else Path(recipe.config.output_dir),
        )


def _stored_before(folder: Path) -> tuple[dict[str, Any] | None, list[RowMeasures] | None]:
    """The evaluation before training that the resumed run left, and what it had measured of each row.

    It lies in the output folder, or without the rows in the results. It cannot be measured again.
    """
    try:
        if (before := read_object(folder / BEFORE_FILE, "an evaluation", "", or_null=True)) is not None:
            rows = before.pop(_ROWS, None)
            return before, None if rows is None else [RowMeasures(**row) for row in rows]
        results = None if (folder / BEFORE_FILE).exists() else read_results(folder)
        return None if results is None else results["before"], None
    except (UserError, KeyError, TypeError) as error:
        print(f"What was measured before the training is lost ({folder / BEFORE_FILE}): {error}", flush=True)
        return None, None

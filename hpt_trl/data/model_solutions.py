"""Questions with the solutions of several models, a struct for each, laid out as one row per solution.

The form of openai/grade-school-math's `example_model_solutions.jsonl`: `{"question": ..., "<model>": {"solution": ...,
"is_correct": ...}, ...}`.
"""

import logging
from typing import Any

from datasets import Dataset, Features, Value

from hpt_trl.data.calculator_marks import drop_calculator_marks
from hpt_trl.data.reading.places import ROW

logger = logging.getLogger(__name__)

_QUESTIONS = ("instruction", "question")


def one_row_per_model(dataset: Dataset, source: str) -> Dataset:
    """Lays the models' solutions out as rows with `instruction`, `output`, `is_correct` and `problem_id`.

    Other data stays as it is. A question without a name of its own (`problem_id`) is named by its row. Calculator marks
    are left out: what is learnt from correct and incorrect solutions shall not be the marks.
    """
    models = [name for name, kind in dataset.features.items() if _is_solution(kind)]
    question = next((name for name in _QUESTIONS if name in dataset.column_names), None)
    if not models or question is None or "output" in dataset.column_names:
        return dataset
    kept = [name for name in (ROW, "input", "difficulty") if name in dataset.column_names]
    named = "problem_id" in dataset.column_names
    features = {name: dataset.features[name] for name in kept}
    features |= {"instruction": Value("string"), "output": Value("string"), "is_correct": Value("bool")}
    features["problem_id"] = dataset.features["problem_id"] if named else Value("string")

    def lay_out(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {name: [] for name in features}
        for place, number in enumerate(batch[ROW]):
            for name in models:
                found = batch[name][place]
                if found is None or not (found["solution"] or "").strip():
                    continue
                for key in kept:
                    rows[key].append(batch[key][place])
                rows["problem_id"].append(batch["problem_id"][place] if named else f"row {number}")
                rows["instruction"].append(batch[question][place])
                rows["output"].append(found["solution"])
                rows["is_correct"].append(found["is_correct"])
        return rows

    read = [*kept, *models, question, *(["problem_id"] if named else [])]
    laid_out = dataset.select_columns(read).map(
        lay_out,
        batched=True,
        batch_size=100,
        remove_columns=read,
        features=Features(features),
        desc="Laying out solutions",
    )
    absent = len(models) * len(dataset) - len(laid_out)
    if absent:
        logger.warning("%s: %d of %d solutions hold no text; left out.", source, absent, len(models) * len(dataset))
    return drop_calculator_marks(laid_out, ["output"], source)


def _is_solution(kind: Any) -> bool:
    return isinstance(kind, dict) and {"solution", "is_correct"} <= set(kind)

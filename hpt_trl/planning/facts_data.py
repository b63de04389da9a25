"""What `hpt-trl check --json` prints of a recipe: the facts as values, by keys that stay."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpt_trl.planning.facts import estimate_of, estimate_of_measuring
from hpt_trl.planning.measuring import Measured
from hpt_trl.planning.need import Need
from hpt_trl.planning.rows import describe_rows
from hpt_trl.planning.timing import step_of
from hpt_trl.recipes.batches import planned_steps
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.runs.evaluating import task_of
from hpt_trl.runs.output_folder import occupied
from hpt_trl.runs.prepared import Prepared


@dataclass(frozen=True)
class Checked:
    """What a check has found.

    Attributes:
        found: the recipe with its model, rows and rewards; of one that has none the recipe; where model or rows are not
            at hand what is known without them, as names and texts.
        missing: what the recipe needs and this machine lacks.
        measured: what a step took, where one was taken.
    """

    found: Prepared | Recipe | list[tuple[str, str]]
    missing: list[Need]
    measured: Measured | None = None


def facts_data(checked: Checked) -> dict[str, Any]:
    """Return the facts of a checked recipe; docs/json.md has the keys."""
    missing = [{"what": need.what, "said": need.said, "remedy": need.remedy} for need in checked.missing]
    found = checked.found
    if isinstance(found, list):
        return {**dict(found[:2]), "facts": dict(found[2:]), "missing": missing}
    measured = {} if checked.measured is None else {"measured": asdict(checked.measured)}
    return {**_known(found), **measured, "missing": missing}


def _known(checked: Prepared | Recipe) -> dict[str, Any]:
    if isinstance(checked, Recipe):
        given = {key: value for key, value in checked.raw.items() if key not in ("stage", "output_dir")}
        return {**_common(checked), "settings": given}
    recipe, splits, overlap = checked.recipe, checked.splits, checked.overlap
    held_out = None
    if splits.test is not None and overlap is not None:
        held_out = {"source": splits.test_source, "rows": len(splits.test), "trained_on_as_well": overlap.rows}
    names = [reward.__name__ for reward in checked.rewards]
    return {
        **_common(recipe),
        "model": checked.model,
        "model_type": checked.model_config.model_type,
        "dtype": None if recipe.model_args.dtype is None else str(recipe.model_args.dtype),
        "data": {"source": splits.source, "layout": splits.layout, "form": splits.form, "rows": splits.rows},
        "held_out": held_out,
        "unused_columns": list(checked.unused),
        "rewards": [
            {"name": name, "weight": weight} for name, weight in zip(names, checked.reward_weights, strict=True)
        ],
        "solved": {"reward": names[checked.success], "at_least": checked.success_threshold} if names else None,
        **(_training(checked) if recipe.stage.trains else _measuring(checked)),
        "device": "cpu" if recipe.config.use_cpu else str(recipe.config.device),
        "resumes_from": None if checked.checkpoint is None else str(checked.checkpoint),
    }


def _common(recipe: Recipe) -> dict[str, Any]:
    common = {"recipe": str(Path(recipe.path)), "stage": recipe.stage.name, "output_dir": recipe.config.output_dir}
    return {**common, "occupied": occupied(recipe)}


def _training(prepared: Prepared) -> dict[str, Any]:
    recipe, config = prepared.recipe, prepared.recipe.config
    rows, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    # How many rows packing leaves is not known before the training.
    packed = config.max_steps <= 0 and recipe.setting("packing", False)
    steps = config.max_steps if config.max_steps > 0 else planned_steps(recipe, len(prepared.splits.train))
    lengths = describe_rows(prepared)[1]
    estimate, step = estimate_of(prepared, lengths), step_of(prepared, lengths)
    return {
        "batch": {
            "processes": recipe.world_size,
            "rows_per_process": rows,
            "accumulation_steps": accumulation,
            "rows_per_step": recipe.world_size * rows * accumulation,
        },
        "steps": None if packed else steps,
        "epochs": None if config.max_steps > 0 else config.num_train_epochs,
        "evaluated_rows": 0 if prepared.answered is None else len(prepared.answered),
        "peak_memory_bytes": estimate.total,
        "memory_bytes": estimate.parts(),
        "step_seconds": None if step is None else step[0].seconds,
        "generation_seconds": None if step is None else step[0].generation_seconds,
    }


def _measuring(prepared: Prepared) -> dict[str, Any]:
    task, estimate = task_of(prepared), estimate_of_measuring(prepared)
    return {
        "measures": list(task.measures),
        "k": list(task.k),
        "completions_per_row": task.decoding.n if task.answers else 0,
        "peak_memory_bytes": estimate.total,
        "memory_bytes": estimate.parts(),
    }

"""The arithmetic of batches: a recipe states the global batch, accumulation follows from the number of processes."""

import math
from typing import TYPE_CHECKING, Any

from hpt_trl.errors import Collector
from hpt_trl.settings.file import Sources

if TYPE_CHECKING:
    from hpt_trl.recipes.recipe import Recipe
    from hpt_trl.settings.keys import Key

# Everything that the batch is made of.
BATCH_KEYS = (
    *("global_batch_size", "gradient_accumulation_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("num_generations", "num_generations_eval", "generation_batch_size", "steps_per_generation", "eval_strategy"),
)


def divisors(number: int, least: int = 1) -> list[int]:
    """Returns the divisors of a number from `least` on, in order."""
    return [divisor for divisor in range(least, number + 1) if number % divisor == 0]


def processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"


def accumulation_steps(global_batch: int, per_device: int, world_size: int) -> int:
    """Returns the gradient accumulation steps that make up a global batch, all counted in rows.

    Raises:
        ValueError: they do not divide; the message says what does.
    """
    if global_batch % (per_device * world_size) == 0:
        return global_batch // (per_device * world_size)
    step = per_device * world_size
    nearest = sorted({max(global_batch // step, 1) * step, (global_batch // step + 1) * step})
    advice = f"allowed: a multiple of {step}, e.g. {' or '.join(map(str, nearest))}"
    if global_batch % world_size == 0:
        fitting = ", ".join(map(str, divisors(global_batch // world_size)))
        advice += f", or a `per_device_train_batch_size` of {fitting}"
    raise ValueError(
        f"{global_batch} rows do not divide into {per_device} rows (`per_device_train_batch_size`) on each of "
        f"{processes(world_size)}; {advice}."
    )


def planned_steps(recipe: "Recipe", rows: int) -> int:
    """Optimizer steps of a run over `rows` training rows, as Trainer counts them from epochs; `max_steps` where set."""
    config = recipe.config
    if config.max_steps > 0:
        return config.max_steps
    return max(math.ceil(config.num_train_epochs * steps_of_epoch(recipe, rows)), 1)


def steps_of_epoch(recipe: "Recipe", rows: int) -> int:
    """Optimizer steps of one epoch, as Trainer counts them."""
    config = recipe.config
    batches = math.ceil(rows / (config.per_device_train_batch_size * recipe.world_size))
    if "num_generations" in recipe.keys:
        # TRL's sampler leaves out what does not fill a generation batch, and repeats the batch for each pass over it.
        batches = rows // (config.generation_batch_size // config.num_generations)
        batches *= config.num_iterations * config.steps_per_generation
    return max(math.ceil(batches / config.gradient_accumulation_steps), 1)


def settle_batch(values: dict[str, Any], known: "dict[str, Key]", world_size: int, sources: Sources) -> None:
    """Derives the accumulation from the global batch and checks that a generation batch holds whole groups.

    `values` gains `gradient_accumulation_steps` where it holds `global_batch_size`.

    Raises:
        UserError: a batch does not divide, or is stated twice.
    """
    mistakes = Collector()
    with mistakes.noted():
        _settle_accumulation(values, known, world_size, sources)
    if "num_generations" in known:
        # The generation batch follows from the accumulation.
        follows = not mistakes.errors
        with mistakes.noted():
            _check_generation(values, known, world_size, sources, follows=follows)
        with mistakes.noted():
            _check_evaluation(values, known, world_size, sources)
    mistakes.settle()


def _settle_accumulation(values: dict[str, Any], known: "dict[str, Key]", world_size: int, sources: Sources) -> None:
    per_device = values.get("per_device_train_batch_size", known["per_device_train_batch_size"].default)
    if values.get("global_batch_size") is None:
        return
    if "gradient_accumulation_steps" in values:
        raise sources.error(
            "gradient_accumulation_steps",
            "it follows from `global_batch_size` and the number of processes; keep one of the two.",
        )
    try:
        steps = accumulation_steps(values["global_batch_size"], per_device, world_size)
    except ValueError as error:
        raise sources.error("global_batch_size", str(error)) from error
    values["gradient_accumulation_steps"] = steps


def _check_generation(
    values: dict[str, Any], known: "dict[str, Key]", world_size: int, sources: Sources, *, follows: bool
) -> None:
    if values.get("generation_batch_size") is not None and values.get("steps_per_generation") is not None:
        raise sources.error("steps_per_generation", "it follows from `generation_batch_size`; keep one of the two.")
    if not follows:
        return
    per_device = values.get("per_device_train_batch_size", known["per_device_train_batch_size"].default)
    group = values.get("num_generations", known["num_generations"].default)
    accumulation = values.get("gradient_accumulation_steps", known["gradient_accumulation_steps"].default)
    steps = values.get("steps_per_generation") or accumulation
    rows = values.get("generation_batch_size") or per_device * world_size * steps
    candidates = ("generation_batch_size", "steps_per_generation", "global_batch_size", "per_device_train_batch_size")
    key = next((name for name in candidates if values.get(name) is not None), "num_generations")
    if rows % (per_device * world_size):
        raise sources.error(
            key, f"{rows} completions; allowed: a multiple of {per_device * world_size} (per device x processes)."
        )
    if rows % group:
        fitting = ", ".join(map(str, divisors(rows, least=2)))
        either = f", or `num_generations` among {fitting}" if fitting else ""
        raise sources.error(
            key,
            f"a generation batch of {rows} completions ({per_device} per device x {processes(world_size)} x "
            f"{rows // (per_device * world_size)} steps) does not divide into groups of {group} (`num_generations`); "
            f"allowed: a multiple of {group}{either}.",
        )


def _check_evaluation(values: dict[str, Any], known: "dict[str, Key]", world_size: int, sources: Sources) -> None:
    evaluated = values.get("num_generations_eval") or values.get("num_generations", known["num_generations"].default)
    eval_rows = values.get("per_device_eval_batch_size", known["per_device_eval_batch_size"].default) * world_size
    if values.get("eval_strategy", "no") != "no" and eval_rows % evaluated:
        raise sources.error(
            "per_device_eval_batch_size",
            f"{eval_rows} completions over {processes(world_size)} do not divide into groups of {evaluated} "
            "(`num_generations_eval`, else `num_generations`); allowed: a multiple of it.",
        )

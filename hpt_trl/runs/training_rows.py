"""Whether the training rows make a batch, and how many of them an epoch leaves out."""

from datasets import Dataset

from hpt_trl.recipes.batches import processes
from hpt_trl.recipes.recipe import Recipe


def rows_of_a_batch(recipe: Recipe) -> int:
    """Rows of the data that a batch takes whole: prompts of a generation batch, or rows over all processes."""
    config = recipe.config
    if "generation_batch_size" in recipe.keys:
        return config.generation_batch_size // config.num_generations
    return config.per_device_train_batch_size * recipe.world_size if config.dataloader_drop_last else 1


def check_training_rows(recipe: Recipe, rows: Dataset, source: str) -> int:
    """See that the rows make at least one batch: the trainer would take no step, and end as if it had.

    Returns:
        The rows that are left out of each epoch, others each time, because batches are taken whole.

    Raises:
        UserError: there are fewer rows than one batch takes.
    """
    config, wanted = recipe.config, rows_of_a_batch(recipe)
    if len(rows) >= wanted:
        return len(rows) % wanted
    if "generation_batch_size" not in recipe.keys:
        raise recipe.error(
            "dataloader_drop_last",
            f"true: a batch takes {wanted} rows ({config.per_device_train_batch_size} on each of "
            f"{processes(recipe.world_size)}), but {source} has {len(rows)} to train on: no step would be taken. Drop "
            f"the line, or write a `per_device_train_batch_size` of at most {max(len(rows) // recipe.world_size, 1)}.",
        )
    named = ("generation_batch_size", "steps_per_generation", "global_batch_size", "gradient_accumulation_steps")
    given = [name for name in named if name in recipe.lines or name in recipe.overrides]
    raise recipe.error(
        given[0] if given else "per_device_train_batch_size",
        f"a generation batch takes {wanted} prompts ({config.generation_batch_size} completions in groups of "
        f"{config.num_generations}), but {source} has {len(rows)} to train on: no step would be taken. Give more rows, "
        f"or a batch of at most {len(rows) * config.num_generations} completions.",
    )

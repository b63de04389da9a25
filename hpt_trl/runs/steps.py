"""Whether a recipe's rows fill a step, and how many of them an epoch leaves out."""

import logging

from hpt_trl.data.layouts import Splits
from hpt_trl.recipes.batches import processes
from hpt_trl.recipes.recipe import Recipe

logger = logging.getLogger(__name__)


def check_steps(recipe: Recipe, splits: Splits) -> int:
    """See that an epoch has a step at all: samplers and loaders leave out what does not fill a whole batch.

    A stream goes on from its first row.

    Returns:
        Training rows that each epoch leaves out.

    Raises:
        UserError: all of them, so that nothing would be trained.
    """
    if splits.stream is not None:
        return 0
    rows, config = len(splits.train), recipe.config
    per_step = config.per_device_train_batch_size * recipe.world_size
    group = recipe.setting("num_generations")
    if group is not None:
        completions = recipe.raw.get("generation_batch_size") or per_step * config.steps_per_generation
        batch = completions // group
        what = f"a generation batch takes {batch} prompts ({completions} completions / {group} `num_generations`)"
        keys = ("generation_batch_size", "steps_per_generation", "global_batch_size", "per_device_train_batch_size")
        key = next((name for name in keys if name in recipe.raw), "num_generations")
        remedy = f"at most {rows * group} completions a batch, e.g. by a lower `{key}`, or more rows"
    elif config.dataloader_drop_last and not recipe.setting("packing", False):
        batch, key = per_step, "dataloader_drop_last"
        what = f"a batch takes {batch} rows ({processes(recipe.world_size)} x {config.per_device_train_batch_size})"
        remedy = f"`{key}: false`, or a lower `per_device_train_batch_size`"
    else:
        return 0
    if rows < batch:
        raise recipe.error(
            key,
            f"{splits.source} has {rows} training rows, but {what}, and what does not fill one is left out: no step "
            f"would be taken. Write {remedy}.",
        )
    if left := rows % batch:
        logger.warning(
            "%s: each epoch leaves out %d of the %d training rows, since %s; %s.",
            splits.source,
            left,
            rows,
            what,
            "which ones is drawn anew for each epoch" if draws_rows_anew(recipe) else "they are always the same",
        )
    return left


def draws_rows_anew(recipe: Recipe) -> bool:
    """Whether each epoch has an order of its own, and so leaves out other rows than the one before."""
    if recipe.setting("num_generations") is not None:
        # The sampler of the trainers on rollouts reads this key alone. SFT's of the same name shuffles once.
        return bool(recipe.setting("shuffle_dataset"))
    return recipe.config.train_sampling_strategy != "sequential"

"""The micro-batches of Hybrid Post-Training that hold demonstrations: how many rows, and how wide they are."""

import math
from typing import TYPE_CHECKING, Any

from hpt_trl.methods.environments import acting_arguments
from hpt_trl.methods.hybrid.config import HybridPostConfig
from hpt_trl.methods.hybrid.routing import rows_that_must_stay
from hpt_trl.planning.lengths import Lengths
from hpt_trl.planning.memory_sizes import Batch
from hpt_trl.rollouts.rows import deal

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hpt_trl.recipes.recipe import Recipe


def demonstrated_batches(recipe: "Recipe", config: "PretrainedConfig", lengths: Lengths) -> tuple[Batch, ...]:
    """Returns the largest micro-batches in which demonstrations are trained; none in stages without.

    With `switch` a demonstration takes the place of its prompt's rollouts, which are left out; with `soft` it comes
    beside them, as it does where no row is left out. Rows are dealt by length, as the trainer deals them.

    Args:
        config: the model's.
        lengths: of the rows; without a demonstration's (in an environment) all rows are as wide as a rollout.
    """
    if not (isinstance(recipe.config, HybridPostConfig) and recipe.config.uses_demonstrations):
        return ()
    settings: Any = recipe.config
    completion = settings.max_completion_length
    rollout = lengths.longest + completion
    prompt, demonstration = lengths.demonstration or (lengths.longest, completion)
    rows, steps = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    group = settings.num_generations
    aux_loss = bool(getattr(config.get_text_config(), "output_router_logits", False))
    if not settings.skip_dead_rows or rows_that_must_stay(settings, aux_loss) is not None:
        # Every rollout stays where it is, and each process brings its own demonstrations.
        more = math.ceil(math.ceil(rows * steps / group) / steps)
        return (Batch(rows + more, prompt, max(demonstration, rollout - prompt)),)
    # Rows with images and contexts of an environment stay with their process.
    apart = config.get_text_config() is not config or acting_arguments(recipe).environment is not None
    slots = steps * (1 if apart else recipe.world_size)
    rollouts, prompts = rows * slots, math.ceil(rows * slots / group)
    if settings.unify_strategy == "switch":
        # One prompt: of more of them more rollouts are left out than demonstrations come.
        rollouts, prompts = max(rollouts - group, 0), 1
    widths = [rollout] * rollouts + [prompt + demonstration] * prompts
    dealt = {(len(slot), max(widths[row] for row in slot)) for slot in deal(widths, slots) if slot}
    return tuple(Batch(height, prompt, width - prompt) for height, width in sorted(_largest(dealt)))


def _largest(batches: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Those that no other is both as high and as wide as."""
    return {
        one
        for one in batches
        if not any(other != one and other[0] >= one[0] and other[1] >= one[1] for other in batches)
    }

"""The micro-batches of Hybrid Post-Training that hold demonstrations: how many rows, and how wide they are."""

import math
from typing import TYPE_CHECKING, Any

from hpt_trl.methods.environments import acting_arguments
from hpt_trl.methods.hybrid.config import HybridPostConfig
from hpt_trl.methods.hybrid.dropping import NOTHING, exact_dropping
from hpt_trl.planning.lengths import Lengths
from hpt_trl.planning.memory_sizes import Batch
from hpt_trl.rollouts.dealing import deal

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hpt_trl.recipes.recipe import Recipe


def demonstrated_batches(recipe: "Recipe", config: "PretrainedConfig", lengths: Lengths) -> tuple[Batch, ...]:
    """Returns the largest micro-batches in which demonstrations are trained; none in stages without.

    With `switch` a demonstration takes the place of its prompt's rollouts, where these are left out; with `soft` it
    comes beside them. Where all rows are dealt anew, they are dealt by length.

    Args:
        config: the model's.
        lengths: of the rows; without a demonstration's (in an environment) all rows are as wide as a rollout.
    """
    if not (isinstance(recipe.config, HybridPostConfig) and recipe.config.uses_demonstrations):
        return ()
    settings: Any = recipe.config
    rollout = lengths.longest + settings.max_completion_length
    prompt, demonstration = lengths.demonstration or (lengths.longest, settings.max_completion_length)
    wide = max(prompt + demonstration, rollout)
    rows, steps, group = (
        settings.per_device_train_batch_size,
        settings.gradient_accumulation_steps,
        settings.num_generations,
    )
    exact = exact_dropping(settings, bool(getattr(config.get_text_config(), "output_router_logits", False)))
    dropping, replaces = exact if settings.skip_dead_rows else NOTHING, settings.unify_strategy == "switch"
    if not dropping.flat:
        # Every other rollout stays in its micro-batch, and each process brings its own demonstrations.
        if dropping.gated and replaces:
            height = max(rows * steps - group, 0) // steps + 1
        else:
            height = rows + math.ceil(math.ceil(rows * steps / group) / steps)
        return (Batch(height, prompt, wide - prompt),)
    # Rows with images and contexts of an environment stay with their process.
    apart = config.get_text_config() is not config or acting_arguments(recipe).environment is not None
    slots = steps * (1 if apart else recipe.world_size)
    rollouts, prompts = rows * slots, math.ceil(rows * slots / group)
    if replaces:
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

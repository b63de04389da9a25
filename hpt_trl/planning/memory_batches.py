"""The micro-batches of a recipe: whether their rows are padded, which share a prompt, which hold demonstrations."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hpt_trl.methods.environments import acting_arguments
from hpt_trl.methods.hybrid.config import HybridPostConfig
from hpt_trl.methods.hybrid.dropping import NOTHING, Dropping, exact_dropping
from hpt_trl.models.dropout import is_noisy
from hpt_trl.models.padding_free.settings import PaddingFree, pads_no_more
from hpt_trl.models.padding_free.trunks import why_padded
from hpt_trl.models.parameters import build_on_meta
from hpt_trl.planning.lengths import Lengths
from hpt_trl.planning.memory_sizes import Batch
from hpt_trl.rollouts.dealing import deal, goes_by_micro_batch

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hpt_trl.recipes.recipe import Recipe


def attention_of(recipe: "Recipe") -> str:
    """Returns the recipe's `attn_implementation`; empty for the model's own, which is `sdpa` where it can."""
    loading = recipe.setting("model_init_kwargs") or {}
    return recipe.model_args.attn_implementation or loading.get("attn_implementation") or ""


def is_packed(recipe: "Recipe", config: "PretrainedConfig") -> bool:
    """Whether a micro-batch is computed as one row of tokens, as far as it shows without the model."""
    settings: Any = recipe.config
    takes_it = attention_of(recipe) in ("", "sdpa") and not recipe.model_args.load_in_8bit
    if not takes_it or why_padded(build_on_meta(config)) is not None:
        return False
    if isinstance(settings, PaddingFree) and settings.is_as_trl:
        # A trainer that leaves its arithmetic to TRL in Python does not in a recipe.
        return settings.padding_free is not False and settings.needs_padding is None
    return pads_no_more(settings)


def prompts_at_once(recipe: "Recipe", config: "PretrainedConfig") -> int | None:
    """Returns how many prompts a micro-batch of packed rollouts has at most; None where each row may have its own.

    Rollouts of a prompt come to one micro-batch where rows are dealt anew.
    """
    settings: Any = recipe.config
    rows, group = settings.per_device_train_batch_size, settings.num_generations
    if not _shares(recipe, config) or (settings.steps_per_generation > 1 and not _deals(settings, config)):
        return None
    if rows % group == 0:
        return rows // group
    # Rows of a group may lie in two micro-batches, at both ends of one.
    return 1 if group % rows == 0 and recipe.world_size == 1 else min(rows, rows // group + 2)


def _shares(recipe: "Recipe", config: "PretrainedConfig") -> bool:
    """Whether the rollouts of a prompt are in one optimizer step, and what they begin with is computed once."""
    settings: Any = recipe.config
    adapted = recipe.model_args.use_peft and recipe.model_args.lora_dropout > 0
    if not settings.disable_dropout and (adapted or is_noisy(build_on_meta(config))):
        return False
    # Those of several steps are shuffled; a load-balancing loss counts each token of each row.
    return settings.steps_per_generation in (1, settings.gradient_accumulation_steps) and not _is_balanced(config)


def _is_balanced(config: "PretrainedConfig") -> bool:
    return bool(getattr(config.get_text_config(), "output_router_logits", False))


def _deals(settings: Any, config: "PretrainedConfig") -> bool:
    if isinstance(settings, HybridPostConfig):
        return _dropped(settings, config).flat
    return not goes_by_micro_batch(settings)


def _dropped(settings: HybridPostConfig, config: "PretrainedConfig") -> Dropping:
    if not settings.skip_dead_rows:
        return NOTHING
    return exact_dropping(settings, _is_balanced(config))


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
    dropping, replaces = _dropped(settings, config), settings.unify_strategy == "switch"
    packed = is_packed(recipe, config)
    if not dropping.flat:
        # Every other rollout stays in its micro-batch, and each process brings its own demonstrations.
        if dropping.gated and replaces:
            rollouts, prompts = max(rows * steps - group, 0) // steps, 1
        else:
            rollouts, prompts = rows, math.ceil(math.ceil(rows * steps / group) / steps)
        padded = Batch(rollouts + prompts, prompt, wide - prompt)
        if not packed:
            return (padded,)
        shared = prompts_at_once(recipe, config)
        of_prompts = rollouts * lengths.longest + prompts * prompt if shared is None else shared * lengths.longest
        of_completions = rollouts * settings.max_completion_length + prompts * demonstration
        return (padded._replace(prompt_tokens=of_prompts, completion_tokens=of_completions),)
    # Rows with images and contexts of an environment stay with their process.
    apart = config.get_text_config() is not config or acting_arguments(recipe).environment is not None
    slots = steps * (1 if apart else recipe.world_size)
    rollouts, prompts = rows * slots, math.ceil(rows * slots / group)
    if replaces:
        # One prompt: of more of them more rollouts are left out than demonstrations come.
        rollouts, prompts = max(rollouts - group, 0), 1
    rows_of = [(lengths.longest, settings.max_completion_length)] * rollouts + [(prompt, demonstration)] * prompts
    # A demonstration that comes beside rollouts has their prompt; what takes their place has it alone.
    first = rollouts // group if replaces else 0
    of_prompts = [place // group for place in range(rollouts)] + [first + place for place in range(prompts)]
    if not _shares(recipe, config):
        of_prompts = list(range(rollouts + prompts))
    dealt = {
        _batch_of(slot, rows_of, of_prompts if packed else None)
        for slot in deal([sum(row) for row in rows_of], slots, of_prompts if packed else None)
        if slot
    }
    return tuple(sorted(_largest(dealt)))


def _batch_of(slot: list[int], rows: list[tuple[int, int]], prompts: list[int] | None) -> Batch:
    """The micro-batch of some rows, each given by the tokens of its prompt and of its completion.

    Args:
        slot: indices of the rows.
        prompts: which prompt each row has, where packed rows share it.
    """
    prompt, width = max(rows[i][0] for i in slot), max(sum(rows[i]) for i in slot)
    if prompts is None:
        return Batch(len(slot), prompt, width - prompt)
    shared: dict[int, int] = {}
    for i in slot:
        shared[prompts[i]] = max(rows[i][0], shared.get(prompts[i], 0))
    return Batch(len(slot), prompt, width - prompt, sum(shared.values()), sum(rows[i][1] for i in slot))


def _largest(batches: Iterable[Batch]) -> list[Batch]:
    """Those that no other is as large as, in every way; one of each size."""
    of_size = {_size(batch): batch for batch in batches}
    return [
        batch
        for size, batch in of_size.items()
        if not any(other != size and other[0] >= size[0] and other[1] >= size[1] for other in of_size)
    ]


def _size(batch: Batch) -> tuple[int, int]:
    if batch.prompt_tokens is None:
        return batch.rows, batch.length
    return batch.tokens, batch.completed

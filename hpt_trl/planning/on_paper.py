"""What a recipe whose model or rows are not at hand would take, by published sizes: `hpt-trl check` tells it."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from hpt_trl.data.entries import every_name
from hpt_trl.data.layouts import Splits
from hpt_trl.data.names import as_dict, shown_names
from hpt_trl.evaluation.measuring import PERPLEXITY, SCORED
from hpt_trl.evaluation.perplexity import LONGEST
from hpt_trl.methods.environments import context_limit
from hpt_trl.methods.evaluate.stage import measures_of
from hpt_trl.methods.pretrain.model import PretrainArguments
from hpt_trl.models.loading import load_config, load_tokenizer
from hpt_trl.models.parameters import count_parameters
from hpt_trl.planning.cost import GPU, Assumptions, Cost, cost_of
from hpt_trl.planning.critics import critic_size, has_critic
from hpt_trl.planning.facts import batch_line, estimate_recipe, memory_line, output_line
from hpt_trl.planning.known_models import known_config, known_model
from hpt_trl.planning.lengths import Lengths
from hpt_trl.planning.memory import estimate_measuring
from hpt_trl.planning.memory_settings import measuring_sizes, sizes_of
from hpt_trl.recipes.batches import planned_steps
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.recipes.vllm import describe
from hpt_trl.rewards.completions import text_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hpt_trl.planning.memory_sizes import Sizes


def facts_on_paper(recipe: Recipe, splits: Splits | None = None) -> list[tuple[str, str]]:
    """Returns what a recipe comes to, as far as it tells by itself.

    Args:
        splits: its rows, where they are at hand.

    Raises:
        UserError: the architecture of its model is not known.
    """
    assumed = Assumptions()
    config, name = config_on_paper(recipe)
    of = "" if name is None else f" as published of {name}"
    lines = [
        ("recipe", str(recipe.path)),
        ("stage", recipe.stage.name),
        (
            "model",
            f"{recipe.model_args.model_name_or_path or 'new, random weights'} ({config.model_type}, "
            f"{count_parameters(config).total / 1e9:.2f}B parameters{of}, dtype {recipe.model_args.dtype})",
        ),
        (
            "data",
            f"{shown_names(every_name(recipe.arguments.dataset_name, recipe.arguments.datasets))}, not read"
            if splits is None
            else splits.counted,
        ),
    ]
    if not recipe.stage.trains:
        return [*lines, *_measuring(recipe, config, assumed), ("output", output_line(recipe))]
    rows = None if splits is None else splits.rows
    return [*lines, *_training(recipe, config, rows, assumed), ("output", output_line(recipe))]


def _measuring(recipe: Recipe, config: "PretrainedConfig", assumed: Assumptions) -> list[tuple[str, str]]:
    measures, settings = measures_of(recipe), recipe.config
    answers = any(measure in SCORED for measure in measures)
    reads = (settings.max_length or LONGEST) if PERPLEXITY in measures else 0
    prompt = _longest_row(recipe, assumed)
    sizes = measuring_sizes(recipe, config, prompt, reads=reads, generates=answers and not settings.use_vllm)
    lines = [("measures", ", ".join(measures))]
    if answers:
        lines.append(("completions", f"{settings.n} a row, up to {settings.max_completion_length} tokens"))
    return [*lines, ("peak memory", memory_line(recipe, estimate_measuring(config, sizes)))]


def _training(
    recipe: Recipe, config: "PretrainedConfig", rows: int | None, assumed: Assumptions
) -> list[tuple[str, str]]:
    estimate = estimate_recipe(recipe, config, lengths_on_paper(recipe, assumed), [], _config_of(recipe), triton=True)
    sizes = sizes_on_paper(recipe, config, assumed)
    named = _config_of(recipe)("value_model_name_or_path") if has_critic(recipe) else None
    cost = cost_of(
        recipe,
        config,
        assumed,
        generated_rows=sizes.generated_rows,
        scored_by=_scorer(recipe),
        critic=critic_size(recipe, config, sizes, named),
    )
    steps = _step_count(recipe, rows)
    return [
        ("batch", batch_line(recipe, recipe.layout)),
        *([("rollouts", rollouts)] if (rollouts := describe(recipe)) else []),
        ("steps", _steps(recipe, steps, rows)),
        ("tokens", _tokens(steps, cost)),
        ("peak memory", memory_line(recipe, estimate)),
        ("cost", _cost(recipe, steps, cost, assumed)),
    ]


def config_on_paper(recipe: Recipe) -> "tuple[PretrainedConfig, str | None]":
    """Returns the config of a recipe's model by its published sizes, and the model that it is published of.

    Raises:
        UserError: it is none of `hpt_trl.planning.known_models`, and is not at hand.
    """
    from transformers import CONFIG_MAPPING

    if recipe.stage.make_config is not None:
        own = as_dict(cast(PretrainArguments, recipe.arguments).model_config, "model_config")
        own["vocab_size"] = _vocabulary(recipe)
        return CONFIG_MAPPING[own.pop("model_type")](**own), None
    name = str(recipe.model_args.model_name_or_path)
    known = known_model(name, recipe.path)
    if known is None:
        settings = {"revision": recipe.model_args.model_revision}
        return load_config(name, trust_remote_code=recipe.setting("trust_remote_code", False), **settings), None
    return known_config(known), known


def _vocabulary(recipe: Recipe) -> int:
    """The vocabulary of a new model."""
    arguments = cast(PretrainArguments, recipe.arguments)
    name = arguments.tokenizer_name_or_path
    if name is None:
        return int(arguments.tokenizer_vocab_size or 0)
    known = known_model(name, recipe.path)
    return len(text_tokenizer(load_tokenizer(name))) if known is None else known_config(known).vocab_size


def sizes_on_paper(recipe: Recipe, config: "PretrainedConfig", assumed: Assumptions) -> "Sizes":
    """Returns the numbers that the memory of a process on a GPU depends on."""
    return dataclasses.replace(sizes_of(recipe, config, lengths_on_paper(recipe, assumed)), triton=True)


def lengths_on_paper(recipe: Recipe, assumed: Assumptions) -> Lengths:
    """Returns how long rows are expected to be; a demonstration is as long as it or a completion may be."""
    longest = _longest_row(recipe, assumed)
    if not recipe.stage.uses_demonstrations(recipe.config) or context_limit(recipe) is not None:
        return Lengths(longest, longest)
    limit = recipe.config.max_demonstration_length or recipe.config.max_completion_length
    return Lengths(longest, longest, (longest, limit))


def _longest_row(recipe: Recipe, assumed: Assumptions) -> int:
    """Tokens of the longest prompt that is expected; in stages without rollouts of the longest row."""
    context = context_limit(recipe)
    if "num_generations" in recipe.keys:
        return assumed.longest_prompt if context is None else max(context - recipe.config.max_completion_length, 1)
    return context or recipe.setting("max_length") or assumed.longest_prompt


def _config_of(recipe: Recipe) -> "Callable[[str], PretrainedConfig | None]":
    def find(key: str) -> "PretrainedConfig | None":
        name = recipe.setting(key)
        known = None if name is None else known_model(str(name), recipe.path)
        return None if known is None else known_config(known)

    return find


def _scorer(recipe: Recipe) -> "PretrainedConfig | None":
    """The model that scores the corpus once, before the training or while it begins."""
    for mode, key in (("reference_mode", "reference_model_name_or_path"), ("value_mode", "value_model_name_or_path")):
        if recipe.setting(mode) == "cached" and (config := _config_of(recipe)(key)) is not None:
            return config
    return None


def _step_count(recipe: Recipe, rows: int | None) -> int | None:
    """Optimizer steps as far as the recipe bounds them: by itself, or by the rows that it draws; else by its rows."""
    if recipe.config.max_steps > 0:
        return recipe.config.max_steps
    if rows is not None and recipe.setting("packing", False):
        return None
    rows = recipe.raw.get("n_samples") if rows is None else rows
    return None if rows is None else planned_steps(recipe, rows)


def _steps(recipe: Recipe, steps: int | None, rows: int | None) -> str:
    epochs = f"{recipe.config.num_train_epochs:g} epochs"
    if steps is None:
        return f"{epochs}; how many steps that is, follows from the rows"
    if recipe.config.max_steps > 0:
        return f"{steps:,}"
    drawn = f" of {recipe.raw['n_samples']:,} rows, if the data has them" if rows is None else ""
    return f"{steps:,} ({epochs}{drawn})"


def _tokens(steps: int | None, cost: Cost) -> str:
    said = f"{cost.tokens:,} a step ({cost.rows:,} rows of {cost.row_length:,})"
    return said if steps is None else f"{said}, {steps * cost.tokens:,} in all"


def _cost(recipe: Recipe, steps: int | None, cost: Cost, assumed: Assumptions) -> str:
    generating = f", {cost.generation_seconds:.1f} s of it generating" if cost.generation_seconds else ""
    count = cost.gpu_hours(steps or 1000)
    hours = f"{f'{count:,.1f}' if count >= 0.1 else f'{count:.1g}'} GPU hours{'' if steps else ' for 1,000 steps'}"
    if cost.scoring_seconds:
        hours += " (the scoring included)"
    lengths = ""
    if "num_generations" in recipe.keys and context_limit(recipe) is None:
        lengths = f", prompts of {assumed.mean_prompt} tokens"
    return (
        f"{hours}, {cost.seconds:.1f} s a step{generating}, on {cost.gpus} x {GPU}\n"
        f"  computed, not measured: {assumed.utilisation:.0%} of the peak FLOPs and rows of {cost.row_length:,} tokens"
        f"{lengths} are assumed; docs/memory.md says what is left out"
    )

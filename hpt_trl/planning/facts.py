"""What `hpt-trl check` prints of a recipe: one line per fact, before any weight is loaded."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from hpt_trl.data.unused import describe_unused
from hpt_trl.evaluation.measuring import MAJORITY, PASS, PERPLEXITY
from hpt_trl.methods.environments import acting_arguments
from hpt_trl.models.loading import parts_of
from hpt_trl.planning import memory, memory_settings
from hpt_trl.planning.acted_rows import environment_line
from hpt_trl.planning.critics import critic_size, describe_critic, has_critic, scoring_model_of
from hpt_trl.planning.evaluated import evaluated_of
from hpt_trl.planning.lengths import Lengths
from hpt_trl.planning.named_models import REFERENCE, REFERENCE_REVISION, named_config
from hpt_trl.planning.rows import describe_rows, rows_there
from hpt_trl.planning.timing import step_line, step_of
from hpt_trl.recipes.batches import planned_steps, processes
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.recipes.vllm import describe
from hpt_trl.rewards.code.rewards import CodeReward
from hpt_trl.rewards.judge.reward import JudgedAnswer
from hpt_trl.rewards.judge.settings import JudgeSettings
from hpt_trl.rewards.reward_model import RewardModel
from hpt_trl.runs.evaluating import task_of
from hpt_trl.runs.hub import destination_line
from hpt_trl.runs.model_files import shipped_by
from hpt_trl.runs.output_folder import occupied
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.steps import draws_rows_anew
from hpt_trl.terminal import pairs, printable


def facts(prepared: Prepared) -> str:
    """Returns the recipe as it resolves: model, rows, rewards, batch, steps, evaluation, memory."""
    recipe, config = prepared.recipe, prepared.recipe.config
    if not recipe.stage.trains:
        return shown_facts(_measured(prepared))
    model = prepared.model_config
    rows, lengths = describe_rows(prepared)
    estimate = _estimate(prepared, lengths)
    name = prepared.model or "new, random weights"
    shipped = shipped_by(recipe, model)
    lines = [
        ("recipe", str(recipe.path)),
        ("stage", recipe.stage.name),
        ("model", f"{name} ({model.model_type}, dtype {recipe.model_args.dtype})"),
        *([("it ships", f"{shipped} (shipped_heads: {recipe.arguments.shipped_heads})")] if shipped else []),
        *rows,
        ("held out", _held_out(prepared)),
    ]
    if prepared.unused:
        lines.append(("unused columns", describe_unused(prepared.unused)))
    if prepared.rewards:
        rewards = zip(prepared.rewards, prepared.reward_weights, strict=True)
        lines.append(("rewards", ", ".join(f"{reward.__name__} (weight {weight:g})" for reward, weight in rewards)))
        lines += [*_programs(prepared), *_judge(prepared)]
        decides = prepared.rewards[prepared.success].__name__
        lines.append(("solved", f"where {decides} is at least {prepared.success_threshold:g}"))
    lines += [
        *([("critic", describe_critic(recipe, model, scoring_model_of(prepared)))] if has_critic(recipe) else []),
        ("batch", batch_line(recipe, prepared.splits.layout)),
        *([("rollouts", rollouts)] if (rollouts := describe(recipe)) else []),
        *_environment(prepared),
        ("steps", _steps(prepared)),
        ("evaluation", _evaluation(prepared)),
        ("peak memory", memory_line(recipe, estimate) + _taken_for_granted(prepared)),
        ("step", step_line(step_of(prepared, lengths))),
        ("device", "CPU" if config.use_cpu else str(config.device)),
        ("output", output_line(recipe, prepared.checkpoint)),
        *([("hub", line)] if (line := destination_line(recipe)) else []),
    ]
    return shown_facts(lines)


def facts_of_work(recipe: Recipe) -> str:
    """Returns what a recipe without model and rows comes to: the keys that it sets."""
    given = [(key, str(value)) for key, value in recipe.raw.items() if key not in ("stage", "output_dir")]
    output = ("output", output_line(recipe))
    return shown_facts([("recipe", str(recipe.path)), ("stage", recipe.stage.name), *given, output])


def output_line(recipe: Recipe, checkpoint: Path | None = None) -> str:
    """Where a run writes, whether it goes on there, and what it would write over."""
    return occupied(recipe) or recipe.config.output_dir + (f", resuming from {checkpoint}" if checkpoint else "")


def shown_facts(lines: list[tuple[str, str]]) -> str:
    """Facts as lines of a name and a text."""
    return pairs([(name, printable(text)) for name, text in lines], least=16)


def _measured(prepared: Prepared) -> list[tuple[str, str]]:
    """The facts of an evaluation."""
    recipe, config, task = prepared.recipe, prepared.recipe.config, task_of(prepared)
    rows, lengths = describe_rows(prepared)
    model, decoding = prepared.model_config, task.decoding
    estimate = _estimate_measuring(prepared, lengths)
    of_k = f" (k {', '.join(map(str, task.k))})"
    named = [name + (of_k if name in (PASS, MAJORITY) else "") for name in task.measures]
    lines = [
        ("recipe", str(recipe.path)),
        ("stage", recipe.stage.name),
        ("model", f"{prepared.model} ({model.model_type}, dtype {recipe.model_args.dtype})"),
        *rows,
        ("measures", ", ".join(named)),
    ]
    if prepared.unused:
        lines.append(("unused columns", describe_unused(prepared.unused)))
    if task.judge is not None:
        lines.append(("rewards", ", ".join(task.judge.names)))
        lines.append(("solved", f"where {task.judge.names[task.judge.success]} is at least {task.judge.threshold:g}"))
    lines += [*_programs(prepared), *_judge(prepared)]
    lines += _environment(prepared)
    if task.answers:
        drawn = "greedy" if decoding.temperature == 0 else f"temperature {decoding.temperature:g}"
        drawn += f", top_p {decoding.top_p:g}" if decoding.top_p < 1 else ""
        engine = "vLLM" if config.use_vllm else "transformers"
        lines.append(
            ("completions", f"{decoding.n} a row, {drawn}, up to {decoding.max_new_tokens} tokens, by {engine}")
        )
    return [
        *lines,
        ("peak memory", f"{estimate.total / 2**30:.1f} GiB per process, estimated from\n{estimate.table()}"),
        ("device", "CPU" if config.use_cpu else str(config.device)),
        ("output", output_line(recipe)),
    ]


def _environment(prepared: Prepared) -> list[tuple[str, str]]:
    if prepared.acting is None:
        return []
    return [("environment", environment_line(prepared.acting, str(acting_arguments(prepared.recipe).environment)))]


def _programs(prepared: Prepared) -> list[tuple[str, str]]:
    """How the programs of completions are run, where a reward runs them."""
    rewards = [inspect.unwrap(reward) for reward in prepared.rewards]
    return [
        (
            "programs",
            f"{reward.sandbox.isolation}; {reward.settings.timeout:g} s and {reward.settings.memory} MiB each, "
            f"{reward.sandbox.workers(reward.settings.workers)} at a time",
        )
        for reward in rewards
        if isinstance(reward, CodeReward)
    ][:1]


def _judge(prepared: Prepared) -> list[tuple[str, str]]:
    """Who judges answers, where a reward asks; the judge is not called for it."""
    return [
        (
            "judge",
            f"{judge.model} at {judge.url}, {judge.timeout:g} s a question, {judge.concurrency} at a time in each "
            f"process, verdicts kept in {judge.cache or 'memory'}",
        )
        for judge in judges_of(prepared)
    ]


def judges_of(prepared: Prepared) -> list[JudgeSettings]:
    """The services that its rewards ask."""
    asked = [inspect.unwrap(reward) for reward in prepared.rewards]
    return [reward.settings for reward in asked if isinstance(reward, JudgedAnswer) and reward.settings]


def estimate_of(prepared: Prepared, lengths: Lengths | None = None) -> memory.MemoryEstimate:
    """Returns the estimate of one process's peak memory that `facts` shows.

    Args:
        lengths: of the rows, where these were measured before.
    """
    return _estimate(prepared, describe_rows(prepared)[1] if lengths is None else lengths)


def estimate_of_measuring(prepared: Prepared) -> memory.MemoryEstimate:
    """Returns the same of a recipe that only measures."""
    return _estimate_measuring(prepared, describe_rows(prepared)[1])


def _estimate_measuring(prepared: Prepared, lengths: Lengths) -> memory.MemoryEstimate:
    recipe, model, task = prepared.recipe, prepared.model_config, task_of(prepared)
    reads = task.longest if PERPLEXITY in task.measures else 0
    judges = [reward_model.config for reward_model in prepared.reward_models]
    generates = task.answers and not recipe.config.use_vllm
    sizes = memory_settings.measuring_sizes(
        recipe, model, lengths.longest, reads=reads, generates=generates, reward_models=judges
    )
    return memory.estimate_measuring(model, sizes)


def _estimate(prepared: Prepared, lengths: Lengths) -> memory.MemoryEstimate:
    recipe = prepared.recipe
    judges = [reward_model.config for reward_model in prepared.reward_models]
    changes: dict[str, Any] = {"evaluated": evaluated_of(prepared, lengths)}
    if (most := rows_there(prepared)) is not None:
        changes["rows"] = memory_settings.rows_at_once(recipe, min(recipe.config.per_device_train_batch_size, most))
    return estimate_recipe(
        recipe,
        prepared.model_config,
        lengths,
        judges,
        lambda key: named_config(recipe, key),
        scoring_model_of(prepared),
        **changes,
    )


def estimate_recipe(
    recipe: Recipe,
    model: PretrainedConfig,
    lengths: Lengths,
    judges: list[PretrainedConfig],
    config_of: Callable[[str], PretrainedConfig | None],
    reward_model: RewardModel | None = None,
    **changes: Any,
) -> memory.MemoryEstimate:
    """Estimates one process's peak memory in a training.

    Args:
        model: config of the trained model.
        lengths: of the rows that are expected.
        judges: configs of the reward models.
        config_of: of a key that names another model, its config.
        reward_model: that a critic can start from.
        changes: numbers of `Sizes` that the recipe alone does not tell.
    """
    frozen = {}
    if recipe.setting("reference_mode") == "online" and recipe.config.needs_reference and not _shares_base(recipe):
        frozen["reference"] = config_of("reference_model_name_or_path")
    if recipe.setting("value_mode") == "online" and recipe.config.needs_values:
        frozen["value"] = config_of("value_model_name_or_path")
    held = {prefix: config for prefix, config in frozen.items() if config is not None}
    sizes = replace(memory_settings.sizes_of(recipe, model, lengths, judges, held), **changes)
    named = config_of("value_model_name_or_path") if has_critic(recipe) else None
    critic = critic_size(recipe, model, sizes, named, reward_model)
    return memory.estimate(model, sizes, recipe.model_args, critic)


def memory_line(recipe: Recipe, estimate: memory.MemoryEstimate) -> str:
    """The estimate with its parts, and vLLM's share."""
    shown = f"{estimate.total / 2**30:.1f} GiB per process, estimated from\n{estimate.table()}"
    if recipe.setting("use_vllm") and recipe.setting("vllm_mode") == "colocate":
        share = recipe.setting("vllm_gpu_memory_utilization")
        shown += f"\n  and vLLM's own share of the GPU, {share:.0%} (`vllm_gpu_memory_utilization`)"
    return shown


def _taken_for_granted(prepared: Prepared) -> str:
    """What the estimate does not know, as lines beneath it."""
    said = ""
    if prepared.splits.stream is not None:
        said += f"\n  if no later row is longer than the first {len(prepared.splits.train):,}"
    if prepared.encoder.is_processor:
        said += "\n  without what the vision tower computes; its weights count"
    return said


def _shares_base(recipe: Recipe) -> bool:
    """Whether Rho-1's reference is an adapter over the trained adapter's own base, which is loaded once."""
    name = recipe.setting(REFERENCE)
    if name is None or not recipe.model_args.use_peft:
        return False
    return parts_of(name, revision=recipe.setting(REFERENCE_REVISION)).adapter is not None


def _held_out(prepared: Prepared) -> str:
    splits, overlap = prepared.splits, prepared.overlap
    if splits.test is None or overlap is None:
        return "none"
    shared = f", {overlap.rows:,} of them ({overlap.share:.1%}) trained on as well" if overlap.rows else ""
    return f"{splits.test_source}, {len(splits.test):,} rows{shared}"


def batch_line(recipe: Recipe, layout: str) -> str:
    """What a step is made of.

    Args:
        layout: of the rows.
    """
    per_device, accumulation = recipe.config.per_device_train_batch_size, recipe.config.gradient_accumulation_steps
    batch, group = recipe.world_size * per_device * accumulation, recipe.setting("num_generations")
    what = f"{'comparisons' if layout == 'comparisons' else 'rows'} per optimizer step"
    if group is not None:
        what = f"completions = {batch / group:g} prompts x {group} per optimizer step"
    return f"{processes(recipe.world_size)} x {per_device} rows x {accumulation} accumulation steps = {batch} {what}"


def _steps(prepared: Prepared) -> str:
    recipe, config = prepared.recipe, prepared.recipe.config
    if config.max_steps <= 0 and recipe.setting("packing", False):
        return f"{config.num_train_epochs:g} epochs of packed rows"
    which = "others each time" if draws_rows_anew(recipe) else "always the same"
    said = f"; {prepared.left_out} rows, {which}, are left out of an epoch" if prepared.left_out else ""
    if config.max_steps > 0:
        return f"{config.max_steps:,}{said}"
    return f"{planned_steps(recipe, len(prepared.splits.train)):,} ({config.num_train_epochs:g} epochs{said})"


def _evaluation(prepared: Prepared) -> str:
    parts = []
    arguments, splits = prepared.recipe.arguments, prepared.splits
    if prepared.answered is not None:
        decoding = f"temperature {arguments.eval_temperature:g}" if arguments.eval_temperature > 0 else "greedy"
        parts.append(
            f"{len(prepared.answered)} rows x {arguments.eval_num_generations}, {decoding}, up to "
            f"{prepared.eval_max_new_tokens} tokens"
        )
    if prepared.recipe.stage.measures_held_out and splits.test is not None:
        parts.append(f"the loss on {len(splits.test):,} held-out rows")
    for name, inner in prepared.evaluations.items():
        parts.append(f"{name} ({', '.join(task_of(inner).measures)} on {len(inner.splits.train):,} rows)")
    return " and ".join(parts) + ", before and after training" if parts else "none"

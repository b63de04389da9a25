"""Everything that a run needs before its first weight is loaded, found or refused: data, rewards, tokenizer, limits.

`hpt-trl check` shows the result; `hpt-trl run` goes on from it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from hpt_trl.data import Splits, load_splits, to_conversational
from hpt_trl.errors import UserError
from hpt_trl.evaluation import as_text, score_completions, weighted_reward
from hpt_trl.models import load_config, load_tokenizer, model_exists
from hpt_trl.output_folder import check_output_folder
from hpt_trl.recipes import Recipe, find_recipe, read_recipe
from hpt_trl.rewards import THRESHOLD_SLACK, check_columns, guard, load_rewards
from hpt_trl.row_checks import validate_lengths

# Demonstrations that the rewards are tried on.
PROBED_ROWS = 8


@dataclass
class Prepared:
    """A recipe with all that could be resolved without weights.

    Attributes:
        model: The recipe's name of the model.
        splits: Training and held-out rows as the trainer takes them.
        held_out: The rows of the evaluation, None without one.
        rewards: Guarded functions, in the recipe's order.
        reward_weights: One each.
        checkpoint: Where the run goes on, None for a new one.
        eval_max_new_tokens: Length limit of the evaluation, in tokens.
    """

    recipe: Recipe
    model: str
    model_config: PretrainedConfig
    splits: Splits
    held_out: Dataset | None
    rewards: list[Callable[..., Any]]
    reward_weights: list[float]
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin
    checkpoint: Path | None
    eval_max_new_tokens: int


def prepare(name: str, overrides: list[str]) -> Prepared:
    """Resolves a recipe and checks whatever can be checked without weights.

    Raises:
        UserError: the first mistake found, in the recipe, the data, the rewards or the output folder.
    """
    recipe = read_recipe(find_recipe(name), overrides)
    arguments, config = recipe.arguments, recipe.config
    recipe.stage.check(recipe)
    checkpoint = check_output_folder(recipe)
    names = (arguments.reward_funcs or []) if recipe.stage.uses_rewards else []
    rewards = [guard(reward) for reward in load_rewards(names)] if names else []
    model = str(recipe.model_args.model_name_or_path)
    settings: dict[str, Any] = {
        "revision": recipe.model_args.model_revision,
        "trust_remote_code": config.trust_remote_code,
    }
    model_exists(model, **settings)
    splits = load_splits(
        arguments,
        # Not the run's: runs with other seeds share their data and answer the same held-out rows.
        seed=0,
        needs_demonstration=recipe.stage.needs_demonstration(config),
        demonstration_column=recipe.stage.demonstration_column(config),
    )
    check_columns(arguments.reward_funcs or [], splits.train.column_names, splits.source)
    tokenizer = load_tokenizer(model, **settings)
    splits = to_conversational(splits, cast(PreTrainedTokenizerBase, tokenizer), arguments)
    prepared = Prepared(
        recipe=recipe,
        model=model,
        model_config=load_config(model, **settings),
        splits=splits,
        held_out=_held_out(recipe, splits),
        rewards=rewards,
        reward_weights=list(config.reward_weights or [1.0] * len(rewards)),
        tokenizer=tokenizer,
        checkpoint=checkpoint,
        eval_max_new_tokens=arguments.eval_max_new_tokens or config.max_completion_length,
    )
    _check_lengths(prepared)
    if recipe.stage.uses_rewards and recipe.stage.needs_demonstration(config):
        _probe_rewards(prepared)
    return prepared


def _held_out(recipe: Recipe, splits: Splits) -> Dataset | None:
    """Rows of the evaluation, drawn with a seed of their own: runs with other seeds answer the same rows."""
    arguments = recipe.arguments
    wanted = arguments.eval_samples
    if arguments.eval_num_generations > 1 and arguments.eval_temperature <= 0:
        raise recipe.error(
            "eval_num_generations",
            f"{arguments.eval_num_generations} with `eval_temperature` {arguments.eval_temperature}: greedy "
            "completions of one prompt are all the same. Allowed: 1, or `eval_temperature` above 0, e.g. 0.6.",
        )
    if wanted == 0:
        return None
    if splits.test is None:
        raise recipe.error(
            "eval_samples",
            f"{wanted} rows, but {splits.source} has no held-out rows. Set `test_split_size: {wanted}`, name a "
            "`dataset_test_split`, or write `eval_samples: 0`.",
        )
    if wanted > len(splits.test):
        raise recipe.error(
            "eval_samples", f"{wanted} rows, but {splits.test_source} has {len(splits.test)}; allowed: at most that."
        )
    return splits.test.select(sorted(random.Random(0).sample(range(len(splits.test)), wanted)))


def _check_lengths(prepared: Prepared) -> None:
    recipe, config = prepared.recipe, prepared.recipe.config
    limit = (config.model_init_kwargs or {}).get("max_position_embeddings")
    if limit is None:
        # Models without a position table (state-space models, ALiBi) have no such entry and no such limit.
        limit = prepared.model_config.get_text_config().to_dict().get("max_position_embeddings")
    # How many tokens an image takes is known when it is processed: vision-language prompts are not measured here.
    if limit is None or isinstance(prepared.tokenizer, ProcessorMixin):
        return
    checks = [(prepared.splits.train, prepared.splits.source, "max_completion_length", config.max_completion_length)]
    if prepared.held_out is not None:
        key = "max_completion_length" if recipe.arguments.eval_max_new_tokens is None else "eval_max_new_tokens"
        checks.append((prepared.held_out, prepared.splits.test_source, key, prepared.eval_max_new_tokens))
    for rows, source, key, new_tokens in checks:
        if new_tokens >= limit:
            raise recipe.error(key, f"{new_tokens} tokens leave no room for a prompt: the model takes {limit} in all.")
        validate_lengths(
            rows,
            source,
            prepared.tokenizer,
            longest=limit - new_tokens,
            reason=f"max_position_embeddings {limit} - {key} {new_tokens}",
        )


def _probe_rewards(prepared: Prepared) -> None:
    """Scores the first demonstrations, and empty completions of the same rows.

    A reward that calls every demonstration wrong, or that cannot tell it from nothing, would train on noise for hours
    without an error.
    """
    recipe, splits = prepared.recipe, prepared.splits
    column = splits.demonstration_column
    names = ", ".join(recipe.arguments.reward_funcs or [])
    rows = [splits.train[index] for index in range(min(PROBED_ROWS, len(splits.train)))]
    empty = _totals(prepared, rows, [""] * len(rows))
    with_demonstration = [row for row in rows if row.get(column)]
    if not with_demonstration:
        return
    first = with_demonstration[0]
    scores = _totals(prepared, with_demonstration, [row[column] for row in with_demonstration])
    known = {score for score in [*scores, *empty] if score is not None}
    shown = (
        f"first at row {first['row']} of {splits.source}:\n"
        f"  prompt: {_short(as_text(first['prompt']))}\n"
        f"  demonstration: {_short(as_text(first[column]))}\n"
        f"  answer: {first.get('answer')!r}"
    )
    if len(known) <= 1:
        value = "no value" if not known else f"{known.pop():g}"
        raise recipe.error(
            "reward_funcs",
            f"{names} gives {value} to each of the first {len(scores)} demonstrations and to an empty completion as "
            f"well: nothing can be learnt from a constant reward; {shown}\n"
            "Name a reward that tells them apart, or look at the form of the answers and the `column_mapping`.",
        )
    threshold = recipe.config.success_threshold
    if recipe.stage.needs_demonstration(recipe.config) and not any(
        score is not None and score >= threshold - THRESHOLD_SLACK for score in scores
    ):
        best = max((score for score in scores if score is not None), default=None)
        raise recipe.error(
            "reward_funcs",
            f"{names} gives {'no value' if best is None else f'at most {best:g}'} to the first {len(scores)} "
            f"demonstrations, below `success_threshold` {threshold:g}: a model that copies them solves nothing; "
            f"{shown}\n"
            "Look at the form of the demonstrations' final answers, at the column `answer` and at `reward_weights`.",
        )


def _totals(prepared: Prepared, rows: list[dict[str, Any]], completions: list[Any]) -> list[float | None]:
    ids = [prepared.tokenizer(text=as_text(completion))["input_ids"] for completion in completions]
    try:
        values = score_completions(rows, completions, ids, prepared.rewards)
    except UserError as error:
        raise UserError(f"{prepared.splits.source}: {error}") from error
    return [weighted_reward(row, prepared.reward_weights) for row in values]


def _short(text: str, length: int = 300) -> str:
    return repr(text if len(text) <= length else text[: length // 2] + " […] " + text[-length // 2 :])

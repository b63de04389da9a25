"""Everything that a run needs before its first weight is loaded, found or refused: data, rewards, tokenizer, limits.

Of a reward model, too, only config and tokenizer are looked at here.

`hpt-trl check` shows the result; `hpt-trl run` goes on from it.
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from hpt_trl.data.layouts import Splits
from hpt_trl.data.loading import load_splits, to_conversational
from hpt_trl.data.messages import as_text
from hpt_trl.data.row_checks import count_tokens, validate_lengths
from hpt_trl.data.sources import where
from hpt_trl.errors import UserError
from hpt_trl.models.loading import load_config, load_tokenizer, model_exists
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.rewards.guarding import THRESHOLD_SLACK, guard
from hpt_trl.rewards.loading import check_columns, load_rewards
from hpt_trl.rewards.reward_model import RewardModel
from hpt_trl.runs.evaluation import score_completions, weighted_reward
from hpt_trl.runs.output_folder import check_output_folder

logger = logging.getLogger(__name__)

# Demonstrations that the rewards are tried on.
PROBED_ROWS = 8


@dataclass
class Prepared:
    """A recipe with all that could be resolved without weights.

    Attributes:
        model: The recipe's name of the model; None where the stage makes a new one.
        splits: Training and held-out rows as the trainer takes them.
        answered: The held-out rows that the evaluation has answered, None without one.
        rewards: Guarded functions in the recipe's order, then its reward models.
        reward_models: The latter by themselves.
        reward_weights: One each.
        judges: How many of them, from the first on, the evaluation scores with: the functions where there are some
            (they are the true reward, a reward model only learnt it), else all.
        checkpoint: Where the run goes on, None for a new one.
        eval_max_new_tokens: Length limit of the evaluation, in tokens.
    """

    recipe: Recipe
    model: str | None
    model_config: PretrainedConfig
    splits: Splits
    answered: Dataset | None
    rewards: list[Callable[..., Any]]
    reward_models: list[RewardModel]
    reward_weights: list[float]
    judges: int
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin
    checkpoint: Path | None
    eval_max_new_tokens: int

    @property
    def judge_weights(self) -> list[float]:
        """The weights of the judges; a true reward that is only measured has weight 0 in the training, not here."""
        weights = self.reward_weights[: self.judges]
        return weights if any(weights) else [1.0] * len(weights)

    @property
    def success_threshold(self) -> float:
        """The reward from which the evaluation counts a completion as solved."""
        own = self.recipe.arguments.eval_success_threshold
        return self.recipe.stage.success_threshold(self.recipe.config) if own is None else own


def prepare(name: str, overrides: list[str]) -> Prepared:
    """Resolves a recipe and checks whatever can be checked without weights.

    Raises:
        UserError: the first mistake found, in the recipe, the data, the rewards or the output folder.
    """
    return prepare_recipe(read_recipe(find_recipe(name), overrides))


def prepare_recipe(recipe: Recipe) -> Prepared:
    """Resolves a recipe that has been read; see `prepare`."""
    arguments, config, stage = recipe.arguments, recipe.config, recipe.stage
    stage.check(recipe)
    checkpoint = check_output_folder(recipe)
    functions = _functions(recipe)
    settings: dict[str, Any] = {
        "revision": recipe.model_args.model_revision,
        "trust_remote_code": recipe.setting("trust_remote_code", False),
    }
    model = None if stage.make_config is not None else str(recipe.model_args.model_name_or_path)
    if model is not None:
        model_exists(model, **settings)
    reward_models = _reward_models(recipe)
    rewards = [guard(reward) for reward in cast(list[Callable[..., Any]], [*functions, *reward_models])]
    splits = _load_splits(recipe)
    if stage.make_tokenizer is not None:
        tokenizer: Any = stage.make_tokenizer(recipe, splits)
    else:
        tokenizer = load_tokenizer(str(model), **settings)
    stage.check_tokenizer(recipe, tokenizer)
    splits = to_conversational(splits, cast(PreTrainedTokenizerBase, tokenizer), arguments)
    for reward_model in reward_models:
        # Messages need its chat template.
        reward_model.encode(splits.train[0]["prompt"], "")
    if stage.make_config is not None:
        model_config = stage.make_config(recipe, tokenizer)
    else:
        model_config = load_config(str(model), **settings)
        _refuse_reward_model(recipe, model_config)
    prepared = Prepared(
        recipe=recipe,
        model=model,
        model_config=model_config,
        splits=splits,
        answered=_answered(recipe, splits, rewards),
        rewards=rewards,
        reward_models=reward_models,
        reward_weights=list(recipe.setting("reward_weights") or [1.0] * len(rewards)),
        judges=len(functions) or len(rewards),
        tokenizer=tokenizer,
        checkpoint=checkpoint,
        eval_max_new_tokens=arguments.eval_max_new_tokens or stage.completion_length(config),
    )
    _check_lengths(prepared)
    if stage.rewards == "required" and functions and stage.needs_demonstration(config):
        _probe_rewards(prepared)
    return prepared


def check_without_model(recipe: Recipe) -> None:
    """Checks what can be checked of a recipe whose models are yet to be made: settings, folder, rewards and rows.

    Raises:
        UserError: the first mistake found.
    """
    recipe.stage.check(recipe)
    check_output_folder(recipe)
    _functions(recipe)
    _load_splits(recipe)


def _functions(recipe: Recipe) -> list[Callable[..., Any]]:
    return load_rewards(recipe.arguments.reward_funcs) if recipe.arguments.reward_funcs else []


def _load_splits(recipe: Recipe) -> Splits:
    arguments, config, stage = recipe.arguments, recipe.config, recipe.stage
    splits = load_splits(
        arguments,
        # Not the run's: runs with other seeds share their data and answer the same held-out rows.
        seed=0,
        needs_demonstration=stage.needs_demonstration(config),
        demonstration_column=stage.demonstration_column(config),
        layout=stage.layout(arguments),
    )
    check_columns(arguments.reward_funcs or [], splits.train.column_names, splits.source)
    if config.eval_strategy != "no" and splits.test is None:
        raise recipe.error(
            "eval_strategy",
            f"{config.eval_strategy.value}, but {splits.source} has no held-out rows. Set `test_split_size`, name a "
            "`dataset_test_split`, or write `eval_strategy: no`.",
        )
    return splits if stage.sample is None else stage.sample(recipe, splits)


def _reward_models(recipe: Recipe) -> list[RewardModel]:
    names = recipe.arguments.reward_model_name_or_path or []
    try:
        loaded = [RewardModel(name, trust_remote_code=recipe.setting("trust_remote_code", False)) for name in names]
    except UserError as error:
        message = str(error).removeprefix("reward_model_name_or_path: ")
        raise recipe.error("reward_model_name_or_path", message) from error
    if len({reward.__name__ for reward in loaded}) < len(loaded):
        # Metrics go by these names: folders of one name in several places are told apart by their whole paths.
        for reward in loaded:
            reward.__name__ = reward.name.strip("./").replace("/", "-")
    return loaded


def _refuse_reward_model(recipe: Recipe, model_config: PretrainedConfig) -> None:
    """Loaded as a language model, a reward model would get a head of random weights."""
    kinds = model_config.architectures or []
    if recipe.stage.name != "reward" and any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise recipe.error(
            "model_name_or_path",
            f"{recipe.model_args.model_name_or_path} is a reward model ({kinds[0]}), which writes no text; name it as "
            "`reward_model_name_or_path`.",
        )


def _answered(recipe: Recipe, splits: Splits, rewards: list[Any]) -> Dataset | None:
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
    if not rewards:
        why = (
            "answers are scored by rewards; name `reward_funcs`, or write `eval_samples: 0`"
            if recipe.stage.rewards != "none"
            else f"the stage `{recipe.stage.name}` answers no prompts; drop the line"
        )
        measured = " (the loss is measured on all held-out rows anyway)" if recipe.stage.measures_held_out else ""
        raise recipe.error("eval_samples", f"{why}{measured}.")
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
    recipe, splits = prepared.recipe, prepared.splits
    # How many tokens an image takes is known when it is processed: vision-language prompts are not measured here.
    if splits.layout == "documents" or isinstance(prepared.tokenizer, ProcessorMixin):
        return
    limit = (recipe.setting("model_init_kwargs") or {}).get("max_position_embeddings")
    if limit is None:
        # Models without a position table (state-space models, ALiBi) have no such entry and no such limit.
        limit = prepared.model_config.get_text_config().to_dict().get("max_position_embeddings")
    checks = []
    if splits.layout == "prompts":
        new_tokens = recipe.stage.completion_length(recipe.config)
        checks.append((splits.train, splits.source, "max_completion_length", new_tokens))
    else:
        for rows, source in ((splits.train, splits.source), (splits.test, splits.test_source)):
            if rows is not None:
                _check_whole_rows(prepared, rows, source, limit)
    if prepared.answered is not None:
        own = "max_completion_length" in recipe.keys and recipe.arguments.eval_max_new_tokens is None
        key = "max_completion_length" if own else "eval_max_new_tokens"
        checks.append((prepared.answered, splits.test_source, key, prepared.eval_max_new_tokens))
    if limit is None:
        return
    for rows, source, key, new_tokens in checks:
        if new_tokens >= limit:
            raise recipe.error(key, f"{new_tokens} tokens leave no room for a prompt: the model takes {limit} in all.")
        validate_lengths(
            rows,
            source,
            prepared.tokenizer,
            longest=limit - new_tokens,
            reason=f"max_position_embeddings {limit} - {key} {new_tokens}",
            remedy=f"lower {key}",
        )


def _check_whole_rows(prepared: Prepared, rows: Dataset, source: str, limit: int | None) -> None:
    """Rows of prompt and answers: TRL cuts them at `max_length` or drops them, and says nothing.

    Raises:
        UserError: a prompt leaves no room for its answer, a row is longer than the model takes, or every row would be
            dropped.
    """
    recipe, tokenizer = prepared.recipe, cast(PreTrainedTokenizerBase, prepared.tokenizer)
    longest, packed = recipe.setting("max_length"), recipe.setting("packing", False)
    keeps_end = recipe.setting("truncation_mode", "keep_start") == "keep_end"
    if longest is not None and not packed and not keeps_end:
        validate_lengths(
            rows,
            source,
            tokenizer,
            longest=longest - 1,
            reason=f"max_length {longest} less one token for an answer",
            remedy="raise max_length",
        )
    for answer in prepared.splits.answers:
        counts = list(count_tokens(rows, tokenizer, ("prompt", answer)))
        if limit is not None and (longest is None or longest > limit) and not packed:
            row, most = max(counts, key=lambda pair: pair[1])
            if most > limit:
                raise UserError(
                    f"{where(source, row)}: prompt and `{answer}` have {most} tokens, more than the model takes "
                    f"(max_position_embeddings {limit}). Shorten or drop such rows, or write `max_length: {limit}`."
                )
        too_long = [row for row, tokens in counts if longest is not None and tokens > longest and not packed]
        drops = recipe.stage.name == "reward"
        if drops and len(too_long) == len(counts):
            raise recipe.error("max_length", f"every row of {source} has more than {longest} tokens and is dropped.")
        if too_long:
            logger.warning(
                "%s: prompt and `%s` have more than %d tokens (`max_length`) in %d of %d rows, which are %s.",
                where(source, too_long[0]),
                answer,
                longest,
                len(too_long),
                len(counts),
                "dropped" if drops else "cut",
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
    threshold = prepared.success_threshold
    if not any(score is not None and score >= threshold - THRESHOLD_SLACK for score in scores):
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
        values = score_completions(rows, completions, ids, prepared.rewards[: prepared.judges])
    except UserError as error:
        raise UserError(f"{prepared.splits.source}: {error}") from error
    return [weighted_reward(row, prepared.judge_weights) for row in values]


def _short(text: str, length: int = 300) -> str:
    return repr(text if len(text) <= length else text[: length // 2] + " […] " + text[-length // 2 :])

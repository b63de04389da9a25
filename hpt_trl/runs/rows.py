"""The rows of a run: those that it trains on or measures, how they are encoded, and those that are answered."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from datasets import Dataset

from hpt_trl.data.layouts import NO_PROMPTS, Splits
from hpt_trl.data.loading import load_measured, load_splits
from hpt_trl.data.prompt_parts import names_columns
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.streaming import load_streamed
from hpt_trl.data.unused import unused_columns
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.rewards.loading import check_columns, check_rows, columns_read
from hpt_trl.runs.acting import trains_on_answers


def read_splits(recipe: Recipe, functions: list[Callable[..., Any]]) -> tuple[Splits, list[str]]:
    """The rows that the stage trains on, and the columns of the data that nothing reads."""
    arguments, config, stage = recipe.arguments, recipe.config, recipe.stage
    # The seed is not the run's: runs with other seeds share their data and answer the same held-out rows.
    shape: dict[str, Any] = {
        "seed": 0,
        "demonstration_column": stage.demonstration_column(config),
        "layout": stage.layouts,
    }
    if stage.trains:
        load = load_streamed if arguments.dataset_streaming else load_splits
        splits = load(arguments, needs_demonstration=stage.needs_demonstration(config), **shape)
    else:
        splits = load_measured(arguments, **shape)
        wanted = stage.most_rows(arguments)
        if wanted is not None and wanted < len(splits.train):
            splits = replace(splits, train=_drawn(splits.train, wanted))
    if splits.layout == "documents" and arguments.eval_samples > 0 and stage.rewards != "none":
        raise recipe.error(
            "eval_samples",
            f"{arguments.eval_samples}, but {NO_PROMPTS} (the loss is measured on all held-out rows anyway); drop the "
            f"line, or write `dataset_layout: demonstrations`, if {splits.source} has them.",
        )
    check_columns(arguments.reward_funcs or [], splits.train.column_names, splits.source)
    for rows, source in splits.named:
        check_rows(functions, rows, source)
    if config.eval_strategy != "no" and splits.test is None:
        raise recipe.error(
            "eval_strategy",
            f"{config.eval_strategy.value}, but {splits.source} has no held-out rows. Set `test_split_size`, name a "
            "`dataset_test_split`, or write `eval_strategy: no`.",
        )
    read, columns = columns_read(functions), splits.train.column_names
    parts = names_columns(arguments.prompt_template, columns)
    answers = splits.answers if trains_on_answers(recipe, splits) else ()
    # An environment gets the whole row.
    if read is None or recipe.environment is not None:
        read = set(columns)
    unused = unused_columns(columns, splits.layout, answers, read=[*parts, *read, *splits.used])
    splits = splits if stage.sample is None else stage.sample(recipe, splits)
    return splits, unused


def encoder_of(
    recipe: Recipe, splits: Splits, tokenizer: Any, end_ids: list[int] | None, embedded: int | None
) -> Encoder:
    """How the recipe's trainer encodes rows: those on rollouts know the recipe's settings alone."""
    settings = recipe.setting("chat_template_kwargs")
    if splits.layout == "prompts":
        return Encoder(tokenizer, settings, reads_rows=False, end_ids=end_ids, embedded=embedded)
    return Encoder(tokenizer, settings, comparisons=splits.layout == "comparisons", embedded=embedded)


def answered_rows(recipe: Recipe, splits: Splits, rewards: list[Any]) -> Dataset | None:
    """Rows that are answered before and after the training."""
    arguments = recipe.arguments
    wanted = arguments.eval_samples
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
    return _drawn(splits.test, wanted)


def _drawn(rows: Dataset, wanted: int) -> Dataset:
    """Rows of an evaluation, drawn with a seed of their own: runs with other seeds answer the same rows."""
    return rows.select(sorted(random.Random(0).sample(range(len(rows)), wanted)))

"""Everything that a run needs before its first weight is loaded, found or refused: data, rewards, tokenizer, limits.

Of a reward model, too, only config and tokenizer are looked at here.

`hpt-trl check` shows the result; `hpt-trl run` goes on from it.
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from trl.trainer.utils import get_callable_name

from hpt_trl.data.layouts import NO_PROMPTS, Splits
from hpt_trl.data.loading import load_measured, load_splits, to_conversational
from hpt_trl.data.overlap import find_overlap
from hpt_trl.data.prompt_parts import names_columns
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.unused import unused_columns
from hpt_trl.errors import Collector, UserError
from hpt_trl.models.built_in import BUILT_IN
from hpt_trl.models.end_tokens import end_token_ids
from hpt_trl.models.folders import is_value_model
from hpt_trl.models.hub_parts import value_model_folder
from hpt_trl.models.loading import (
    ModelParts,
    check_architecture,
    load_config,
    load_tokenizer,
    model_exists,
    parts_of,
    positions_of,
)
from hpt_trl.models.whole_files import refuse_torn_weights
from hpt_trl.recipes.adapter_targets import check_adapter_targets
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.model_settings import check_model_settings
from hpt_trl.recipes.profiles import Profile
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.rewards.completions import text_tokenizer
from hpt_trl.rewards.guarding import guard
from hpt_trl.rewards.judge.reward import JudgedAnswer
from hpt_trl.rewards.loading import check_columns, check_rows, columns_read, load_rewards
from hpt_trl.rewards.names import distinct_names
from hpt_trl.rewards.reward_model import RewardModel
from hpt_trl.runs.acting import acting_for, rows_placed, trains_on_answers
from hpt_trl.runs.bad_rows import settle_rows
from hpt_trl.runs.early import check_run
from hpt_trl.runs.lengths import check_lengths
from hpt_trl.runs.model_files import shipped_by
from hpt_trl.runs.noting import note_settings, reads_here
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.probe import Probe, check_thresholds, success_of
from hpt_trl.runs.resuming import refuse_other_processes
from hpt_trl.runs.steps import check_steps
from hpt_trl.runs.tokenizer import embedded_tokens, settle_tokenizer
from hpt_trl.settings.imported import seeing

logger = logging.getLogger(__name__)


def prepare(name: str, overrides: list[str]) -> Prepared:
    """Resolves a recipe and checks whatever can be checked without weights.

    Raises:
        UserError: the mistakes found, in the recipe, the data, the rewards or the output folder.
    """
    check_run(name, overrides, live=True)
    return prepare_recipe(read_recipe(find_recipe(name), overrides))


def prepare_recipe(recipe: Recipe, trained: "Trained | None" = None, *, planned: bool = False) -> Prepared:
    """Resolves a recipe that has been read; see `prepare`.

    Args:
        trained: Of an evaluation that a training names: the model that is trained, in place of a named one.
        planned: No run is to start now: the output folder may hold one.
    """
    arguments, config, stage = recipe.arguments, recipe.config, recipe.stage
    mistakes = Collector()
    with mistakes.noted():
        stage.check(recipe)
    settings_hold = not mistakes.errors
    checkpoint = note_settings(recipe, mistakes, trained=trained is not None, planned=planned)
    settings: dict[str, Any] = {
        "revision": recipe.model_args.model_revision,
        "trust_remote_code": recipe.setting("trust_remote_code", False),
    }
    named = stage.make_config is None and trained is None
    model = str(recipe.model_args.model_name_or_path) if named else None
    parts, of_base = None, settings
    with mistakes.noted(), recipe.sources.placing("model_name_or_path"):
        # What an adapter lies over has the config and, where the adapter brings none, the tokenizer.
        parts = None if model is None else _parts(recipe, model)
        of_base = settings if parts is None else settings | {"revision": parts.revision}
        if parts is not None:
            model_exists(parts.base, **of_base)
    functions: list[Callable[..., Any]] = []
    reward_models: list[RewardModel] = []
    rewards: list[Callable[..., Any]] = []
    with mistakes.noted(), recipe.sources.placing("reward_funcs", "reward_model_name_or_path"):
        functions = _functions(recipe)
        reward_models = _reward_models(recipe)
        rewards = _guarded(recipe, functions, reward_models)
        success = success_of(recipe, [get_callable_name(reward) for reward in rewards])
    names = [get_callable_name(reward) for reward in rewards]
    # Rows of the Hub are not downloaded for a recipe that is refused, and none are read by settings that do not hold.
    if not mistakes.errors or (settings_hold and reads_here(recipe)):
        with mistakes.noted(), recipe.sources.placing(*recipe.keys):
            splits, unused = _load_splits(recipe, functions)
    mistakes.settle()
    if trained is not None:
        tokenizer: Any = trained.tokenizer
    elif stage.make_tokenizer is not None:
        tokenizer = stage.make_tokenizer(recipe, splits)
    else:
        tokenizer = load_tokenizer(str(model), **settings)
        settle_tokenizer(recipe, tokenizer)
    stage.check_tokenizer(recipe, tokenizer)
    splits = to_conversational(splits, cast(PreTrainedTokenizerBase, tokenizer), arguments)
    if trained is not None:
        model_config = trained.model_config
    elif stage.make_config is not None:
        model_config = stage.make_config(recipe, tokenizer)
    else:
        assert parts is not None
        model_config = load_config(parts.base, **of_base)
        _refuse_reward_model(recipe, model_config, parts)
        shipped_by(recipe, model_config)
        check_model_settings(recipe, model_config)
        check_adapter_targets(recipe, model_config)
    if trained is not None:
        ends = trained.end_ids
    else:
        end = text_tokenizer(tokenizer).eos_token_id
        ends = None if parts is None else end_token_ids(parts.base, end, **of_base)
    encoder = _encoder(recipe, splits, tokenizer, ends, embedded_tokens(recipe, tokenizer, model_config))
    splits = stage.fit(recipe, settle_rows(recipe, splits, encoder), encoder)
    positions = (recipe.setting("model_init_kwargs") or {}).get("max_position_embeddings") or positions_of(model_config)
    stage.check_rows(recipe, splits, encoder, positions)
    acting = acting_for(recipe, splits, tokenizer, ends, positions)
    for reward_model in reward_models:
        # Messages need its chat template.
        reward_model.encode(splits.train[0]["prompt"], "")
    prepared = Prepared(
        recipe=recipe,
        model=model,
        model_config=model_config,
        splits=splits,
        answered=_answered(recipe, splits, rewards),
        overlap=find_overlap(splits),
        left_out=check_steps(recipe, splits) if stage.trains else 0,
        rewards=rewards,
        reward_models=reward_models,
        reward_weights=list(recipe.setting("reward_weights") or [1.0] * len(rewards)),
        judges=len(functions) or len(rewards),
        success=success,
        tokenizer=tokenizer,
        encoder=encoder,
        checkpoint=checkpoint,
        eval_max_new_tokens=arguments.eval_max_new_tokens or stage.completion_length(config),
        end_ids=ends,
        evaluations=_evaluations(recipe, Trained(tokenizer, model_config, ends)),
        unused=unused,
        acting=acting,
    )
    if parts is not None:
        for name in (parts.base, parts.adapter):
            if name is not None and name not in BUILT_IN:
                with recipe.sources.placing("model_name_or_path"):
                    refuse_torn_weights(name)
    if checkpoint is not None:
        refuse_other_processes(recipe, checkpoint, model_config)
    check_lengths(recipe, splits, encoder, prepared.answered, prepared.eval_max_new_tokens, positions)
    # A judge costs money.
    if functions and not any(isinstance(reward, JudgedAnswer) for reward in functions):
        weights = prepared.judge_weights[: len(functions)]
        with rows_placed(splits):
            Probe(recipe, splits, encoder, rewards[: len(functions)], names, weights, success, acting).check()
    if rewards:
        check_thresholds(recipe, rewards[success], names[success])
    return prepared


@dataclass(frozen=True)
class Trained:
    """The model that a training is about to train, for the evaluations that it names.

    Attributes:
        end_ids: Token ids at which it stops; None for all special ones.
    """

    tokenizer: Any
    model_config: PretrainedConfig
    end_ids: list[int] | None


def _evaluations(recipe: Recipe, trained: Trained) -> dict[str, Prepared]:
    """The evaluations that a training names, with its model."""
    found: dict[str, Prepared] = {}
    mistakes = Collector()
    # It draws completions in its own processes, sharded weights or not.
    profile = replace(recipe.profile, fsdp_version=None, zero_stage=None)
    for name in recipe.arguments.evaluations or []:
        try:
            # Modules of its folder have the names that they have there, and the recipe's keep theirs.
            with seeing():
                evaluation = _evaluation(recipe, find_recipe(name), trained, profile)
            path = evaluation.recipe.path
            if path.stem in found:
                raise UserError(f"{path}: another evaluation is called {path.stem} as well; rename one of the files.")
            found[path.stem] = evaluation
        except UserError as error:
            for one in error.every:
                mistakes.note(recipe.error("evaluations", f"{name}: {one}"))
    mistakes.settle()
    return found


def _evaluation(recipe: Recipe, path: Path, trained: Trained, profile: Profile) -> Prepared:
    words = ["--model_name_or_path", str(recipe.model_args.model_name_or_path or "the trained model")]
    words += ["--output_dir", recipe.config.output_dir, "--use_cpu", str(recipe.config.use_cpu).lower()]
    inner = read_recipe(path, words, world_size=recipe.world_size, profile=profile)
    if inner.stage.name != "evaluate":
        raise inner.error("stage", f"`{inner.stage.name}` is no evaluation; allowed here: evaluate.")
    return prepare_recipe(inner, trained)


def check_without_model(recipe: Recipe, *, planned: bool = False) -> Splits:
    """Checks what can be checked of a recipe whose models are yet to be made: settings, folder, rewards and rows.

    Args:
        planned: No run is to start now: the output folder may hold one.

    Returns:
        The rows.

    Raises:
        UserError: the first mistake found.
    """
    mistakes = Collector()
    with mistakes.noted():
        recipe.stage.check(recipe)
    settings_hold = not mistakes.errors
    note_settings(recipe, mistakes, model_is_there=False, planned=planned)
    functions: list[Callable[..., Any]] = []
    with mistakes.noted(), recipe.sources.placing("reward_funcs"):
        functions = _functions(recipe)
        models = [Path(name).name for name in recipe.arguments.reward_model_name_or_path or []]
        names = [*distinct_names(functions, recipe.arguments.reward_funcs), *models]
        success = success_of(recipe, names)
        if success < len(functions):
            check_thresholds(recipe, functions[success], names[success])
    if not mistakes.errors or (settings_hold and reads_here(recipe)):
        with mistakes.noted(), recipe.sources.placing(*recipe.keys):
            splits, _ = _load_splits(recipe, functions)
    mistakes.settle()
    find_overlap(splits)
    check_steps(recipe, splits)
    return splits


def _functions(recipe: Recipe) -> list[Callable[..., Any]]:
    return load_rewards(recipe.arguments.reward_funcs, recipe.arguments) if recipe.arguments.reward_funcs else []


def _load_splits(recipe: Recipe, functions: list[Callable[..., Any]]) -> tuple[Splits, list[str]]:
    """The rows that the stage trains on, and the columns of the data that nothing reads."""
    arguments, config, stage = recipe.arguments, recipe.config, recipe.stage
    # The seed is not the run's: runs with other seeds share their data and answer the same held-out rows.
    shape: dict[str, Any] = {
        "seed": 0,
        "demonstration_column": stage.demonstration_column(config),
        "layout": stage.layouts,
    }
    if stage.trains:
        splits = load_splits(arguments, needs_demonstration=stage.needs_demonstration(config), **shape)
    else:
        splits = load_measured(arguments, **shape)
        wanted = getattr(arguments, "max_rows", None)
        if wanted is not None and wanted < len(splits.train):
            splits = replace(splits, train=drawn(splits.train, wanted))
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
    if read is None or getattr(arguments, "environment", None) is not None:
        read = set(columns)
    unused = unused_columns(columns, splits.layout, answers, read=[*parts, *read, *splits.used])
    splits = splits if stage.sample is None else stage.sample(recipe, splits)
    return splits, unused


def _encoder(
    recipe: Recipe, splits: Splits, tokenizer: Any, end_ids: list[int] | None, embedded: int | None
) -> Encoder:
    """How the recipe's trainer encodes rows: those on rollouts know the recipe's settings alone."""
    settings = recipe.setting("chat_template_kwargs")
    if splits.layout == "prompts":
        return Encoder(tokenizer, settings, reads_rows=False, end_ids=end_ids, embedded=embedded)
    return Encoder(tokenizer, settings, comparisons=splits.layout == "comparisons", embedded=embedded)


def _reward_models(recipe: Recipe) -> list[RewardModel]:
    names = recipe.arguments.reward_model_name_or_path or []
    try:
        loaded = [RewardModel(name, trust_remote_code=recipe.setting("trust_remote_code", False)) for name in names]
    except UserError as error:
        message = str(error).removeprefix("reward_model_name_or_path: ")
        raise recipe.error("reward_model_name_or_path", message) from error
    return loaded


def _guarded(
    recipe: Recipe, functions: list[Callable[..., Any]], models: list[RewardModel]
) -> list[Callable[..., Any]]:
    """All rewards under names of their own, which metrics, results and `success_reward` go by."""
    paths = [*(recipe.arguments.reward_funcs or []), *([None] * len(models))]
    rewards = cast(list[Callable[..., Any]], [*functions, *models])
    return [guard(reward, name) for reward, name in zip(rewards, distinct_names(rewards, paths), strict=True)]


def _parts(recipe: Recipe, model: str) -> ModelParts:
    """What the model of a recipe consists of; of one that is trained, it has to be whole."""
    revision = recipe.model_args.model_revision
    return ModelParts(model, revision) if recipe.stage.trains else parts_of(model, revision=revision)


def _refuse_reward_model(recipe: Recipe, model_config: PretrainedConfig, parts: ModelParts) -> None:
    """Loaded as a language model, a reward model or a value model would get a head of random weights."""
    kinds = model_config.architectures or []
    name = parts.adapter or parts.base
    if not recipe.stage.scores:
        check_architecture(parts.base, model_config)
    # A trunk without a head is the only kind of model that a value model's config may name.
    if not any("For" in kind for kind in kinds):
        name = value_model_folder(name, revision=recipe.model_args.model_revision)
    if is_value_model(name):
        raise recipe.error(
            "model_name_or_path",
            f"{recipe.model_args.model_name_or_path} is a value model, which writes no text; name it as "
            "`value_model_name_or_path`, where a stage has that key.",
        )
    if not recipe.stage.scores and any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise recipe.error(
            "model_name_or_path",
            f"{recipe.model_args.model_name_or_path} is a reward model ({kinds[0]}), which writes no text; name it as "
            "`reward_model_name_or_path`.",
        )


def _answered(recipe: Recipe, splits: Splits, rewards: list[Any]) -> Dataset | None:
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
    return drawn(splits.test, wanted)


def drawn(rows: Dataset, wanted: int) -> Dataset:
    """Rows of an evaluation, drawn with a seed of their own: runs with other seeds answer the same rows."""
    return rows.select(sorted(random.Random(0).sample(range(len(rows)), wanted)))

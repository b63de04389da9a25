"""Everything that a run needs before its first weight is loaded, found or refused: data, rewards, tokenizer, limits.

Of a reward model, too, only config and tokenizer are looked at here.

`hpt-trl check` shows the result; `hpt-trl run` goes on from it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from hpt_trl.data.layouts import Splits
from hpt_trl.data.loading import to_conversational
from hpt_trl.data.overlap import find_overlap
from hpt_trl.errors import Collector, UserError
from hpt_trl.models.loading import positions_of
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.profiles import Profile
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.rewards.names import distinct_names
from hpt_trl.runs.acting import acting_for
from hpt_trl.runs.bad_rows import settle_rows
from hpt_trl.runs.early import check_run
from hpt_trl.runs.lengths import check_lengths
from hpt_trl.runs.model_sources import ModelSource, Trained
from hpt_trl.runs.noting import note_settings, reads_here
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.probe import check_thresholds, success_of
from hpt_trl.runs.resuming import refuse_other_processes
from hpt_trl.runs.reward_sources import load_functions, rewards_of, try_rewards
from hpt_trl.runs.rows import answered_rows, encoder_of, read_splits
from hpt_trl.runs.steps import check_steps
from hpt_trl.runs.tokenizer import embedded_tokens
from hpt_trl.settings.imported import seeing


def prepare(name: str, overrides: list[str]) -> Prepared:
    """Resolves a recipe and checks whatever can be checked without weights.

    Raises:
        UserError: the mistakes found, in the recipe, the data, the rewards or the output folder.
    """
    check_run(name, overrides, live=True)
    return prepare_recipe(read_recipe(find_recipe(name), overrides))


def prepare_recipe(recipe: Recipe, trained: Trained | None = None, *, planned: bool = False) -> Prepared:
    """Resolves a recipe that has been read; see `prepare`.

    Args:
        trained: Of an evaluation that a training names: the model that is trained, in place of a named one.
        planned: No run is to start now: the output folder may hold one.
    """
    stage, mistakes = recipe.stage, Collector()
    with mistakes.noted():
        stage.check(recipe)
    settings_hold = not mistakes.errors
    checkpoint = note_settings(recipe, mistakes, trained=trained is not None, planned=planned)
    with mistakes.noted(), recipe.sources.placing("model_name_or_path"):
        source = ModelSource(recipe, trained)
    functions: list[Callable[..., Any]] = []
    with mistakes.noted(), recipe.sources.placing("reward_funcs", "reward_model_name_or_path"):
        functions = load_functions(recipe)
        rewards = rewards_of(recipe, functions)
    # Rows of the Hub are not downloaded for a recipe that is refused, and none are read by settings that do not hold.
    if not mistakes.errors or (settings_hold and reads_here(recipe)):
        with mistakes.noted(), recipe.sources.placing(*recipe.keys):
            splits, unused = read_splits(recipe, functions)
    mistakes.settle()
    tokenizer = source.tokenizer(splits)
    stage.check_tokenizer(recipe, tokenizer)
    splits = to_conversational(splits, cast(PreTrainedTokenizerBase, tokenizer), recipe.arguments)
    model_config, ends = source.config(tokenizer), source.end_ids(tokenizer)
    encoder = encoder_of(recipe, splits, tokenizer, ends, embedded_tokens(recipe, tokenizer, model_config))
    splits = stage.fit(recipe, settle_rows(recipe, splits, encoder), encoder)
    positions = (recipe.setting("model_init_kwargs") or {}).get("max_position_embeddings") or positions_of(model_config)
    stage.check_rows(recipe, splits, encoder, positions)
    acting = acting_for(recipe, splits, tokenizer, ends, positions)
    for reward_model in rewards.models:
        # Messages need its chat template.
        reward_model.encode(splits.train[0]["prompt"], "")
    prepared = Prepared(
        recipe=recipe,
        model=source.name,
        model_config=model_config,
        splits=splits,
        answered=answered_rows(recipe, splits, rewards.guarded),
        overlap=find_overlap(splits),
        left_out=check_steps(recipe, splits) if stage.trains else 0,
        rewards=rewards.guarded,
        reward_models=rewards.models,
        reward_weights=list(recipe.setting("reward_weights") or [1.0] * len(rewards.guarded)),
        judges=len(functions) or len(rewards.guarded),
        success=rewards.success,
        tokenizer=tokenizer,
        encoder=encoder,
        checkpoint=checkpoint,
        eval_max_new_tokens=recipe.arguments.eval_max_new_tokens or stage.completion_length(recipe.config),
        end_ids=ends,
        evaluations=_evaluations(recipe, Trained(tokenizer, model_config, ends)),
        unused=unused,
        acting=acting,
    )
    source.refuse_torn()
    if checkpoint is not None:
        refuse_other_processes(recipe, checkpoint, model_config)
    check_lengths(recipe, splits, encoder, prepared.answered, prepared.eval_max_new_tokens, positions)
    try_rewards(prepared, rewards)
    return prepared


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
        functions = load_functions(recipe)
        models = [Path(name).name for name in recipe.arguments.reward_model_name_or_path or []]
        names = [*distinct_names(functions, recipe.arguments.reward_funcs), *models]
        success = success_of(recipe, names)
        if success < len(functions):
            check_thresholds(recipe, functions[success], names[success])
    if not mistakes.errors or (settings_hold and reads_here(recipe)):
        with mistakes.noted(), recipe.sources.placing(*recipe.keys):
            splits, _ = read_splits(recipe, functions)
    mistakes.settle()
    find_overlap(splits)
    check_steps(recipe, splits)
    return splits

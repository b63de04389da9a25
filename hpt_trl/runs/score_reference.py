"""`hpt-trl score-reference RECIPE`: the caches of a recipe's frozen models, filled before a training asks for them."""

import tempfile
import time
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any, cast

from accelerate import PartialState
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from trl import SFTTrainer

from hpt_trl.methods.sft.rows import training_splits
from hpt_trl.reading import duration
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.runs.early import check_scoring
from hpt_trl.runs.preparation import prepare_recipe
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.quiet import quiet
from hpt_trl.token_scores.cache import ScoreCache
from hpt_trl.token_scores.config import ReferenceConfig, ValueScoresConfig
from hpt_trl.token_scores.reference_scores import reference_cache
from hpt_trl.token_scores.values import value_cache


def score_reference(name: str, overrides: list[str]) -> None:
    """Score a recipe's training rows: `hpt-trl score-reference NAME [--key value ...]`.

    What is there is kept, so the command can be stopped and given again; the training then finds the scores.

    Raises:
        UserError: a mistake in the recipe, its data or its reference, or no room for the scores.
    """
    started = time.perf_counter()
    check_scoring(name, overrides, live=True)
    recipe = read_recipe(find_recipe(name), overrides)
    config = recipe.config
    kinds = _kept(recipe)
    with quiet(), tempfile.TemporaryDirectory() as empty:
        # A trainer makes its output folder, and its repository on the Hub; these are the training's.
        config.output_dir, config.push_to_hub, config.resume_from_checkpoint = empty, False, None
        recipe.raw.pop("push_to_hub", None)
        prepared = prepare_recipe(recipe)
        trainer = _preparing_trainer(prepared)
        rows = cast(Dataset, trainer.train_dataset)
        config.model_init_kwargs = {
            "attn_implementation": recipe.model_args.attn_implementation,
            **cast(dict[str, Any], config.model_init_kwargs or {}),
        }
        caches = [
            fill(
                config,
                cast(PreTrainedTokenizerBase, prepared.tokenizer),
                rows,
                trainer.data_collator,
                device=trainer.accelerator.device,
            )
            for fill in kinds
        ]
    if PartialState().is_main_process:
        for cache in caches:
            per_token = f"{cache.size / cache.tokens:.2f} bytes a token" if cache.tokens else "none to score"
            print(
                f"{len(rows):,} rows of {prepared.splits.source}; scored in {cache.folder}: "
                f"{len(cache):,} rows, {cache.tokens:,} tokens, {cache.size:,} bytes ({per_token}), "
                f"in {duration(time.perf_counter() - started)}."
            )


def _kept(recipe: Recipe) -> list[Callable[..., ScoreCache]]:
    """What fills each cache that a recipe's training would look into.

    Raises:
        UserError: it would look into none.
    """
    config = recipe.config
    asked: list[tuple[str, Callable[..., ScoreCache]]] = []
    if isinstance(config, ReferenceConfig) and config.needs_reference:
        asked.append(("reference_mode", reference_cache))
    if isinstance(config, ValueScoresConfig) and config.needs_values:
        asked.append(("value_mode", value_cache))
    for key, _ in asked:
        if getattr(config, key) != "cached":
            raise recipe.error(key, f"{getattr(config, key)} keeps no scores; allowed here: cached.")
    if asked:
        return [fill for _, fill in asked]
    # The setting that decides whether a frozen model is asked.
    deciding = next(key for key in ("selection", "weighting") if key in recipe.keys)
    raise recipe.error(deciding, f"{recipe.setting(deciding)} needs no frozen model, so there is nothing to score.")


def _preparing_trainer(prepared: Prepared) -> SFTTrainer:
    """A trainer that tokenizes and packs the rows as the training will, around a model that is never used."""
    config = copy(prepared.recipe.config)
    config.model_init_kwargs, config.eval_strategy = None, "no"
    tokenizer = cast(PreTrainedTokenizerBase, prepared.tokenizer)
    toy = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    rows, _ = training_splits(replace(prepared.splits, test=None), prepared.encoder, config, prepared.recipe.arguments)
    return SFTTrainer(LlamaForCausalLM(toy), config, train_dataset=rows, processing_class=tokenizer)

"""`hpt-trl score-reference RECIPE`: the cache of a recipe's reference, filled before any training asks for it."""

import tempfile
import time
from copy import copy
from dataclasses import replace
from typing import Any, cast

from accelerate import PartialState
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from trl import SFTTrainer

from hpt_trl.methods.rho1.config import Rho1Config
from hpt_trl.methods.rho1.scoring import prepare_cache
from hpt_trl.methods.sft.rows import training_splits
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.runs.preparation import Prepared, prepare_recipe
from hpt_trl.runs.quiet import quiet
from hpt_trl.runs.reporting import duration


def score_reference(name: str, overrides: list[str]) -> None:
    """Score a recipe's training rows: `hpt-trl score-reference NAME [--key value ...]`.

    What is there is kept, so the command can be stopped and given again; the training then finds the scores.

    Raises:
        UserError: a mistake in the recipe, its data or its reference, or no room for the scores.
    """
    started = time.perf_counter()
    recipe = read_recipe(find_recipe(name), overrides)
    config = recipe.config
    if not isinstance(config, Rho1Config):
        raise recipe.error("stage", f"{recipe.stage.name} has no reference's scores; allowed here: rho1.")
    if not config.needs_reference:
        raise recipe.error("selection", f"{config.selection} needs no reference, so there is nothing to score.")
    if config.reference_mode != "cached":
        raise recipe.error("reference_mode", f"{config.reference_mode} keeps no scores; allowed here: cached.")
    with quiet(), tempfile.TemporaryDirectory() as empty:
        # A trainer makes its output folder, and its repository on the Hub; these are the training's.
        config.output_dir, config.push_to_hub, config.resume_from_checkpoint = empty, False, None
        prepared = prepare_recipe(recipe)
        trainer = _preparing_trainer(prepared)
        rows = cast(Dataset, trainer.train_dataset)
        config.model_init_kwargs = {
            "attn_implementation": recipe.model_args.attn_implementation,
            **cast(dict[str, Any], config.model_init_kwargs or {}),
        }
        cache = prepare_cache(
            config,
            cast(PreTrainedTokenizerBase, prepared.tokenizer),
            rows,
            trainer.data_collator,
            device=trainer.accelerator.device,
        )
    if PartialState().is_main_process:
        per_token = f"{cache.size / cache.tokens:.2f} bytes a token" if cache.tokens else "none to score"
        print(
            f"{len(rows):,} rows of {prepared.splits.source}; scored in {cache.folder}: "
            f"{len(cache):,} rows, {cache.tokens:,} tokens, {cache.size:,} bytes ({per_token}), "
            f"in {duration(time.perf_counter() - started)}."
        )


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

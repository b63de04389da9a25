"""`hpt-trl score-reference RECIPE`: the cache of a recipe's reference, filled before any training asks for it."""

import time
from typing import cast

from accelerate import PartialState
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from trl import SFTTrainer

from hpt_trl.preparation import Prepared, prepare_recipe
from hpt_trl.recipes import find_recipe, read_recipe
from hpt_trl.reporting import duration
from hpt_trl.rho1.config import Rho1Config
from hpt_trl.rho1.scoring import prepare_cache
from hpt_trl.rho1.stage import training_rows
from hpt_trl.runner import _quiet


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
    # Nothing is written to the output folder: the run that lies there may be finished.
    recipe.arguments.overwrite = not config.resume_from_checkpoint
    with _quiet():
        prepared = prepare_recipe(recipe)
        trainer = _preparing_trainer(prepared)
        rows = cast(Dataset, trainer.train_dataset)
        cache = prepare_cache(
            config,
            cast(PreTrainedTokenizerBase, prepared.tokenizer),
            rows,
            trainer.data_collator,
            device=trainer.accelerator.device,
            autocast=trainer.accelerator.autocast,
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
    config, model_args = prepared.recipe.config, prepared.recipe.model_args
    tokenizer = cast(PreTrainedTokenizerBase, prepared.tokenizer)
    config.model_init_kwargs = {
        "attn_implementation": model_args.attn_implementation,
        **(config.model_init_kwargs or {}),
    }
    config.eval_strategy = "no"
    toy = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    rows = training_rows(prepared.splits.train)
    return SFTTrainer(LlamaForCausalLM(toy), config, train_dataset=rows, processing_class=tokenizer)

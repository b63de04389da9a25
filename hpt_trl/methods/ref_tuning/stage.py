"""The stage `ref_tuning`: recipes that fine-tune a reference model on solutions with TRL's own SFTTrainer."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import cast

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer

from hpt_trl.data.layouts import Splits
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.row_lengths import count_tokens
from hpt_trl.data.solution_texts import prompts_and_completions
from hpt_trl.data.solutions import SAMPLING_RULES, Sampling, SolutionArguments, draw, sampling_of
from hpt_trl.data.sources import ROW
from hpt_trl.methods.ref_tuning.checkpoints import KeptModels, kept
from hpt_trl.methods.ref_tuning.config import RefTuningArguments, RefTuningConfig
from hpt_trl.methods.sft.rows import training_splits
from hpt_trl.methods.sft.trainer import MeasuredSFTTrainer
from hpt_trl.methods.text_models import refuse_processor
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.settings.ranges import Rule, one_of

logger = logging.getLogger(__name__)


def check(recipe: Recipe) -> None:
    """Refuse what cannot work before the data is read.

    Raises:
        UserError: the first such setting.
    """
    _sampling(recipe)
    config = recipe.config
    if config.completion_only_loss is False:
        raise recipe.error("completion_only_loss", "false: a reference is tuned on the solutions alone; drop the line.")
    if config.load_best_model_at_end:
        raise recipe.error(
            "load_best_model_at_end",
            "true: the best model is kept as `checkpoints/best`, beside the last one; drop the line.",
        )


def sample(recipe: Recipe, splits: Splits) -> Splits:
    """Draw the solutions and make demonstrations of them.

    Raises:
        UserError: no solution to train on.
    """
    train = _demonstrations(recipe, splits.train, splits.source)
    test = None
    if splits.test is not None:
        test = _demonstrations(recipe, splits.test, splits.test_source, held_out=True)
    return replace(splits, train=train, test=test, layout="demonstrations")


def fit(recipe: Recipe, splits: Splits, encoder: Encoder) -> Splits:
    """Leave out what is longer than `max_length`: it would be cut, and its solution would never end.

    Raises:
        UserError: nothing is left.
    """
    if recipe.config.max_length is None:
        return splits
    train = _short_enough(recipe, splits.train, splits.source, encoder)
    test = None
    if splits.test is not None:
        test = _short_enough(recipe, splits.test, splits.test_source, encoder)
    return replace(splits, train=train, test=test)


def check_tokenizer(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a model that reads images, or whose solutions nothing could end.

    Raises:
        UserError: what is missing.
    """
    refuse_processor(recipe, tokenizer)
    if tokenizer.eos_token is None:
        raise recipe.error(
            "eos_token",
            f"the tokenizer of {recipe.model_args.model_name_or_path} has no end-of-sequence token, which has to close "
            "every solution; name one of its tokens.",
        )


def build(inputs: StageInputs) -> Trainer:
    train, test = training_splits(inputs.splits, inputs.encoder, inputs.config, inputs.arguments)
    trainer = MeasuredSFTTrainer(train_dataset=train, eval_dataset=test, **inputs.trainer_arguments())
    if inputs.config.checkpoint_fraction is not None:
        trainer.add_callback(KeptModels(trainer, inputs.config.checkpoint_fraction))
    return trainer


def finish(trainer: Trainer) -> None:
    """Say which models were kept beside the last one."""
    said = kept(Path(str(trainer.args.output_dir)), trainer.state)
    if said is not None and trainer.is_world_process_zero():
        print(f"\nCheckpoints in {said}")


def _sampling(recipe: Recipe, *, held_out: bool = False) -> Sampling:
    arguments = cast(RefTuningArguments, recipe.arguments)
    return sampling_of(
        arguments,
        recipe.sources,
        seed=recipe.config.data_seed,
        correct_ratio=arguments.correct_ratio,
        held_out=held_out,
    )


def _demonstrations(recipe: Recipe, rows: Dataset, source: str, *, held_out: bool = False) -> Dataset:
    drawn = draw(rows, source, _sampling(recipe, held_out=held_out))
    if drawn.shortage and not held_out:
        logger.warning("%s: %s.", source, drawn.shortage)
    if recipe.config.process_index == 0:
        print(f"Drawn from {source}: {drawn.summary}")
    rows = rows.select(drawn.rows)
    return Dataset.from_dict(
        {
            **prompts_and_completions(rows, cast(SolutionArguments, recipe.arguments).solution_prompt),
            **{name: rows[name] for name in (ROW, "problem_id", "difficulty") if name in rows.column_names},
        }
    )


def _short_enough(recipe: Recipe, rows: Dataset, source: str, encoder: Encoder) -> Dataset:
    longest = recipe.config.max_length
    counts = count_tokens(rows, source, encoder, ("prompt", "completion"))
    keep = [place for place, (_, tokens) in enumerate(counts) if tokens <= longest]
    if not keep:
        raise recipe.error(
            "max_length", f"all {len(rows)} solutions drawn from {source} have more than {longest} tokens."
        )
    if len(keep) < len(rows):
        logger.warning(
            "%s: %d of the %d drawn solutions have more than %d tokens with their prompt (`max_length`) and are left "
            "out.",
            source,
            len(rows) - len(keep),
            len(rows),
            longest,
        )
    return rows.select(keep)


STAGE = Stage(
    name="ref_tuning",
    config_class=RefTuningConfig,
    argument_class=RefTuningArguments,
    check=check,
    check_tokenizer=check_tokenizer,
    build=build,
    finish=finish,
    rules=(
        *SAMPLING_RULES,
        Rule(("checkpoint_fraction",), lambda value: 0 < value < 1, "above 0 to below 1, or null"),
        one_of("loss_type", "nll", "dft"),
        one_of("truncation_mode", "keep_start", "keep_end"),
    ),
    layout=lambda arguments: "solutions",
    sample=sample,
    fit=fit,
    measures_held_out=True,
)

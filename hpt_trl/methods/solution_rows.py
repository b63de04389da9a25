"""From solutions to the rows of a training, for the stages that draw them: settings, demonstrations, lengths."""

import logging
from dataclasses import replace
from typing import cast

from datasets import Dataset

from hpt_trl.data.layouts import Splits
from hpt_trl.data.reading.places import ROW, where
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.row_lengths import examples
from hpt_trl.data.solution_texts import prompts_and_completions
from hpt_trl.data.solutions import ProblemArguments, Sampling, draw, sampling_of
from hpt_trl.errors import UserError
from hpt_trl.recipes.recipe import Recipe

logger = logging.getLogger(__name__)


def sampling(recipe: Recipe, *, held_out: bool = False) -> Sampling:
    """The draw that a recipe asks for.

    Raises:
        UserError: settings that do not fit together.
    """
    arguments = cast(ProblemArguments, recipe.arguments)
    return sampling_of(arguments, recipe.sources, seed=recipe.config.data_seed, held_out=held_out)


def check_sampling(recipe: Recipe) -> None:
    """Refuse draws that cannot be made, before the data is read.

    Raises:
        UserError: settings that do not fit together.
    """
    sampling(recipe)
    arguments = recipe.arguments
    # Data with held-out rows that no key asks for are known once they are read.
    if arguments.test_split_size is not None or arguments.dataset_test_split is not None:
        sampling(recipe, held_out=True)


def drawn_demonstrations(recipe: Recipe, splits: Splits) -> Splits:
    """Draw the solutions and make demonstrations of them.

    Raises:
        UserError: no solution to train on.
    """
    train = _drawn(recipe, splits.train, splits.source)
    test = None
    if splits.test is not None:
        test = _drawn(recipe, splits.test, splits.test_source, held_out=True)
    return replace(splits, train=train, test=test, layout="demonstrations")


def as_demonstrations(recipe: Recipe, rows: Dataset, columns: tuple[str, ...]) -> Dataset:
    """Solutions as prompts and completions, with those of the columns that are there."""
    return Dataset.from_dict(
        {
            **prompts_and_completions(rows, cast(ProblemArguments, recipe.arguments).solution_prompt),
            **{name: rows[name] for name in columns if name in rows.column_names},
        }
    )


def without_long_ones(recipe: Recipe, splits: Splits, encoder: Encoder) -> Splits:
    """Leave out what is longer than `max_length`: it would be cut, and its solution would never end.

    Raises:
        UserError: nothing is left.
    """
    if recipe.config.max_length is None:
        return splits
    train, _ = short_enough(recipe, splits.train, splits.source, encoder)
    test = None
    if splits.test is not None:
        test, _ = short_enough(recipe, splits.test, splits.test_source, encoder)
    return replace(splits, train=train, test=test)


def short_enough(recipe: Recipe, rows: Dataset, source: str, encoder: Encoder) -> tuple[Dataset, list[int]]:
    """The demonstrations that `max_length` leaves whole, and how many tokens of each are its solution's.

    Raises:
        UserError: nothing is left, or a row cannot be encoded.
    """
    longest, keep, outputs = recipe.config.max_length, [], []
    for place, (row, example) in enumerate(examples(rows, ("prompt", "completion"))):
        try:
            encoded = encoder.answered(example, "completion")
        except UserError as error:
            raise UserError(f"{where(source, row)}: {error}") from error
        if longest is None or len(encoded.ids) <= longest:
            keep.append(place)
            outputs.append(sum(encoded.trained))
    if not keep:
        raise recipe.error(
            "max_length", f"all {len(rows)} solutions of {source} have more than {longest} tokens with their prompt."
        )
    if len(keep) < len(rows):
        logger.warning(
            "%s: %d of %d solutions have more than %d tokens with their prompt (`max_length`) and are left out.",
            source,
            len(rows) - len(keep),
            len(rows),
            longest,
        )
    return rows.select(keep), outputs


def _drawn(recipe: Recipe, rows: Dataset, source: str, *, held_out: bool = False) -> Dataset:
    drawn = draw(rows, source, sampling(recipe, held_out=held_out))
    if drawn.shortage and not held_out:
        logger.warning("%s: %s.", source, drawn.shortage)
    if recipe.config.process_index == 0:
        print(f"Drawn from {source}: {drawn.summary}")
    return as_demonstrations(recipe, rows.select(drawn.rows), (ROW, "problem_id", "difficulty"))

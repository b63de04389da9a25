"""From solutions to the pairs that a critic learns from: which may be drawn, of which length, in pairs."""

import logging
from dataclasses import replace
from typing import Any, cast

from datasets import Dataset

from hpt_trl.data.layouts import Splits
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.row_lengths import examples
from hpt_trl.data.solution_pairs import candidates, draw_pairs
from hpt_trl.data.solution_texts import prompts_and_completions
from hpt_trl.data.solutions import Sampling, sampling_of
from hpt_trl.data.sources import ROW, where
from hpt_trl.errors import UserError
from hpt_trl.methods.critic.config import CriticArguments
from hpt_trl.recipes.recipe import Recipe

logger = logging.getLogger(__name__)

_OF_SOLUTION = (ROW, "problem_id", "difficulty", "is_correct")


def sampling(recipe: Recipe, *, held_out: bool = False) -> Sampling:
    """The draw that a recipe asks for.

    Raises:
        UserError: settings that do not fit together.
    """
    arguments = cast(CriticArguments, recipe.arguments)
    found = sampling_of(arguments, recipe.sources, seed=recipe.config.data_seed, held_out=held_out)
    return replace(found, max_pairs_per_problem=arguments.max_test_pairs_per_problem) if held_out else found


def candidate_rows(recipe: Recipe, splits: Splits) -> Splits:
    """The solutions that may be drawn, as demonstrations.

    Raises:
        UserError: no problem has solutions of both kinds.
    """
    train = _candidates(recipe, splits.train, splits.source)
    test = None
    if splits.test is not None:
        test = _candidates(recipe, splits.test, splits.test_source, held_out=True)
    return replace(splits, train=train, test=test, layout="demonstrations")


def paired_rows(recipe: Recipe, splits: Splits, encoder: Encoder) -> Splits:
    """Pairs of these solutions, as comparisons; those longer than `max_length` are left out.

    Raises:
        UserError: there is no pair.
    """
    train = _pairs(recipe, splits.train, splits.source, encoder)
    test = None
    if splits.test is not None:
        test = _pairs(recipe, splits.test, splits.test_source, encoder, held_out=True)
    return replace(splits, train=train, test=test, layout="comparisons")


def _candidates(recipe: Recipe, rows: Dataset, source: str, *, held_out: bool = False) -> Dataset:
    rows = rows.select(candidates(rows, source, sampling(recipe, held_out=held_out)))
    return Dataset.from_dict(
        {
            **prompts_and_completions(rows, cast(CriticArguments, recipe.arguments).solution_prompt),
            **{name: rows[name] for name in _OF_SOLUTION if name in rows.column_names},
        }
    )


def _pairs(recipe: Recipe, rows: Dataset, source: str, encoder: Encoder, *, held_out: bool = False) -> Dataset:
    rows, outputs = _short_enough(recipe, rows, source, encoder)
    arguments = cast(CriticArguments, recipe.arguments)
    columns: dict[str, Any] = {name: rows[name] for name in rows.column_names}
    try:
        drawn = draw_pairs(
            [str(problem) for problem in columns["problem_id"]],
            columns["is_correct"],
            outputs,
            sampling(recipe, held_out=held_out),
            balanced=arguments.length_balanced and not held_out,
            difficulties=columns.get("difficulty"),
        )
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if drawn.shortage and not held_out:
        logger.warning("%s: %s.", source, drawn.shortage)
    if recipe.config.process_index == 0:
        print(f"Drawn from {source}: {drawn.summary}")
    rights, wrongs = zip(*drawn.pairs, strict=True)
    return Dataset.from_dict(
        {
            **{name: [columns[name][place] for place in rights] for name in ("prompt", ROW, "problem_id")},
            "chosen": [columns["completion"][place] for place in rights],
            "rejected": [columns["completion"][place] for place in wrongs],
        }
    )


def _short_enough(recipe: Recipe, rows: Dataset, source: str, encoder: Encoder) -> tuple[Dataset, list[int]]:
    """The rows that are not too long, and how many tokens each solution has."""
    longest, keep, outputs = recipe.config.max_length, [], []
    for place, (row, example) in enumerate(examples(rows, ("prompt", "completion"))):
        try:
            encoded = encoder.answered(example, "completion")
        except UserError as error:
            raise UserError(f"{where(source, row)}: {error}") from error
        if longest is None or len(encoded.ids) <= longest:
            keep.append(place)
            outputs.append(sum(encoded.trained))
    if len(keep) < len(rows):
        logger.warning(
            "%s: %d of the %d solutions that may be drawn have more than %d tokens with their prompt (`max_length`); "
            "they are left out.",
            source,
            len(rows) - len(keep),
            len(rows),
            longest,
        )
    if not keep:
        raise recipe.error("max_length", f"all {len(rows)} solutions of {source} have more than {longest} tokens.")
    return rows.select(keep), outputs

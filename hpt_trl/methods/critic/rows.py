"""From solutions to the pairs that a critic learns from: which may be drawn, of which length, in pairs."""

import logging
from dataclasses import replace
from typing import Any, cast

from datasets import Dataset

from hpt_trl.data.layouts import Splits
from hpt_trl.data.reading.places import ROW
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.solution_pairs import candidates, draw_pairs
from hpt_trl.data.solutions import Sampling
from hpt_trl.methods.critic.config import CriticArguments
from hpt_trl.methods.solution_rows import as_demonstrations, sampling, short_enough
from hpt_trl.recipes.recipe import Recipe

logger = logging.getLogger(__name__)

_OF_SOLUTION = (ROW, "problem_id", "difficulty", "is_correct")


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
    rows = rows.select(candidates(rows, source, _sampling(recipe, held_out=held_out)))
    return as_demonstrations(recipe, rows, _OF_SOLUTION)


def _sampling(recipe: Recipe, *, held_out: bool) -> Sampling:
    found = sampling(recipe, held_out=held_out)
    most = cast(CriticArguments, recipe.arguments).max_test_pairs_per_problem
    return replace(found, max_pairs_per_problem=most) if held_out else found


def _pairs(recipe: Recipe, rows: Dataset, source: str, encoder: Encoder, *, held_out: bool = False) -> Dataset:
    rows, outputs = short_enough(recipe, rows, source, encoder)
    arguments = cast(CriticArguments, recipe.arguments)
    columns: dict[str, Any] = {name: rows[name] for name in rows.column_names}
    drawn = draw_pairs(
        [str(problem) for problem in columns["problem_id"]],
        columns["is_correct"],
        outputs,
        _sampling(recipe, held_out=held_out),
        source=source,
        balanced=arguments.length_balanced and not held_out,
        difficulties=columns.get("difficulty"),
    )
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

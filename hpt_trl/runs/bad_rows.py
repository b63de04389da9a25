"""Every row encoded once before the training, to find those that would be trained otherwise than they are written."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset

from hpt_trl.data.faults import Faults
from hpt_trl.data.forms.pictures import undecoded
from hpt_trl.data.layouts import Splits
from hpt_trl.data.messages import IMAGES
from hpt_trl.data.objects import column_values
from hpt_trl.data.rendered_with import RENDERED_WITH
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.row_lengths import Asked, Length, examples, remember
from hpt_trl.data.unused import HINTS
from hpt_trl.errors import UserError
from hpt_trl.recipes.recipe import Recipe

logger = logging.getLogger(__name__)

Lengths = dict[Asked, list[tuple[int, Length]]]


def settle_rows(recipe: Recipe, splits: Splits, encoder: Encoder) -> Splits:
    """The rows that the trainer can encode; by `on_bad_row` others are refused together, or left out and counted.

    How many tokens the rows have is kept for the checks that ask for it.

    Raises:
        UserError: the first rows that cannot be encoded, with the number of the others.
    """
    # What an environment shows is rendered as it is played; solutions are encoded as they are drawn.
    if recipe.environment is not None or splits.layout == "solutions":
        return splits
    if splits.layout == "documents" and encoder.embedded is None:
        return splits
    unseen = [name for name in IMAGES if name in splits.train.column_names and not encoder.is_processor]
    if unseen:
        logger.warning(
            "%s: the model reads no images: its answers are trained without those of `%s`. To leave the column out, "
            "write column_mapping: {source_%s: %s}.",
            splits.source,
            *[unseen[0]] * 3,
        )
        # Trainers on rollouts and on comparisons would take them for a vision-language model's.
        test = splits.test
        if test is not None:
            test = test.remove_columns([name for name in unseen if name in test.column_names])
        splits = replace(splits, train=splits.train.remove_columns(unseen), test=test)
    if splits.layout == "prompts":
        # Trainers on whole rows give them to the template.
        for name in RENDERED_WITH:
            if name in splits.train.column_names and any(column_values(splits.train, name)):
                logger.warning("%s: the column `%s`: %s.", splits.source, name, HINTS[name])
    train, dropped = _settled(recipe, splits, encoder, splits.train, splits.source)
    test, test_dropped = splits.test, 0
    if test is not None:
        test, test_dropped = _settled(recipe, splits, encoder, test, splits.test_source, held_out=True)
    return replace(
        splits,
        train=train,
        test=test,
        dropped=splits.dropped + dropped,
        test_dropped=splits.test_dropped + test_dropped,
    )


def _settled(
    recipe: Recipe, splits: Splits, encoder: Encoder, rows: Dataset, source: str, *, held_out: bool = False
) -> tuple[Dataset, int]:
    faults, lengths = Faults(source, recipe.arguments.on_bad_row), Lengths()
    # Held-out prompts are answered, and trained on by nobody.
    own = None if held_out and splits.layout == "prompts" else recipe.stage.try_row
    answers = list(splits.answers) if own is not None or splits.layout != "prompts" else []
    read = ["text"] if splits.layout == "documents" else ["prompt", *(set(answers) & set(rows.column_names))]
    for row, example in examples(undecoded(rows), read):
        try:
            if splits.layout == "documents" or own is None:
                found = _tokens(example, encoder, answers)
            else:
                found = own(recipe, example, encoder, splits.demonstration_column)
        except UserError as error:
            faults.add(row, str(error))
            continue
        for asked, length in found.items():
            lengths.setdefault(asked, []).append((row, length))
    kept = faults.settled(rows)
    for asked, counted in lengths.items():
        remember(kept, encoder, asked, counted)
    return kept, len(rows) - len(kept)


def _tokens(example: dict[str, Any], encoder: Encoder, answers: Sequence[str]) -> dict[Asked, Length]:
    if "text" in example:
        return {Asked(("text",)): Length(len(encoder.document(example["text"]).ids))}
    found = {Asked(("prompt",)): Length(len(encoder.prompt(example)))}
    return found | {Asked(("prompt", name)): Length(len(encoder.answered(example, name).ids)) for name in answers}

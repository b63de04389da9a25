"""Streams of rows for the trainers of TRL that take them."""

import logging
from collections.abc import Callable
from typing import Any, cast

from datasets import Features
from transformers import PreTrainedTokenizerBase, TrainerCallback

from hpt_trl.data.layouts import Splits
from hpt_trl.data.messages import IMAGES
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.streaming import StreamedRows
from hpt_trl.errors import UserError
from hpt_trl.recipes.recipe import Recipe, StageInputs

logger = logging.getLogger(__name__)

# What a trainer gets of a row with the columns of its layout; a `UserError` is what is wrong with it.
OfRow = Callable[[dict[str, Any]], dict[str, Any]]


def refuse_streamed_images(recipe: Recipe, splits: Splits, encoder: Encoder) -> None:
    """Refuse a stream of rows with images."""
    if splits.stream is not None and encoder.reads_images(splits.train.column_names):
        raise recipe.error("dataset_streaming", "rows with images are read before the training; drop the line.")


def streaming_arguments(inputs: StageInputs, of_row: OfRow, features: Features | None = None) -> dict[str, Any]:
    """What a trainer takes of a stream: its rows in their order, or drawn by the seed, and who tells their faults.

    Args:
        features: of what `of_row` returns; None to take it as it is.
    """
    config, tokenizer = inputs.config, cast(PreTrainedTokenizerBase, inputs.encoder.processing_class)
    rows = StreamedRows(inputs.splits, inputs.arguments, tokenizer, _as_the_first(inputs, of_row))
    in_order = config.train_sampling_strategy == "sequential"
    buffer = 0 if in_order else inputs.arguments.shuffle_buffer
    dataset = rows.as_dataset(features, seed=config.seed, buffer=buffer)
    return {"train_dataset": dataset, "callbacks": [*inputs.callbacks, ToldFaults(rows)]}


def _as_the_first(inputs: StageInputs, of_row: OfRow) -> OfRow:
    """Refuses a row with what trainers read of all rows or of none, where the first have it not."""
    read = ("margin",) * (inputs.splits.layout == "comparisons") + IMAGES * inputs.encoder.is_processor
    late = [name for name in read if name not in inputs.splits.train.column_names]

    def checked(row: dict[str, Any]) -> dict[str, Any]:
        for name in late:
            if row.get(name) not in (None, []):
                raise UserError(
                    f"`{name}` is there, which the first rows of the stream do not have: write it in every row or in "
                    "none."
                )
        return of_row(row)

    return checked


class ToldFaults(TrainerCallback):
    """Says at the end of a training how many faulty rows of its stream were left out."""

    def __init__(self, rows: StreamedRows):
        self.rows = rows

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        tally = self.rows.stream.tally
        if tally.faulty and state.is_world_process_zero:
            logger.warning(
                "%s: %d of the %d rows that were read are faulty and left out (on_bad_row: drop), such as\n%s",
                self.rows.stream.name,
                tally.faulty,
                tally.rows,
                "\n".join(tally.examples),
            )

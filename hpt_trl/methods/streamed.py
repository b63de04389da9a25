"""Streams of rows for the trainers of TRL that take them."""

import logging
from collections.abc import Callable
from typing import Any, cast

from datasets import Features
from transformers import PreTrainedTokenizerBase, TrainerCallback

from hpt_trl.data.layouts import Splits
from hpt_trl.data.messages import IMAGES
from hpt_trl.data.rendered_with import given_to_templates
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.streaming import StreamedRows
from hpt_trl.errors import UserError
from hpt_trl.models.loading import positions_of
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


def streamed_comparisons(
    inputs: StageInputs, *columns: str, check: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """What a trainer on comparisons takes of a stream.

    Args:
        columns: that it reads of a row, where the row has them.
        check: raises a `UserError` about a row on which it cannot be trained; None where it can on any.
    """
    fits = _fitting(inputs)

    def of_row(row: dict[str, Any]) -> dict[str, Any]:
        if check is not None:
            check(row)
        fits(row)
        return given_to_templates({name: row[name] for name in columns if name in row})

    return streaming_arguments(inputs, of_row)


def _fitting(inputs: StageInputs) -> Callable[[dict[str, Any]], None]:
    """Refuses a row that would be trained otherwise than it is written, or that `check_lengths` refuses of others."""
    # `datasets` takes a digest of whatever makes the rows: of these alone, not of all that a stage is built from.
    encoder, answers, longest = inputs.encoder, inputs.splits.answers, inputs.config.max_length
    positions = None if inputs.model_config is None else positions_of(inputs.model_config)
    keeps_end = getattr(inputs.config, "truncation_mode", "keep_start") == "keep_end"
    limit = positions if positions is not None and (longest is None or longest > positions) else None

    def check(row: dict[str, Any]) -> None:
        if longest is not None and not keeps_end and (tokens := len(encoder.prompt(row))) >= longest:
            raise UserError(f"the prompt has {tokens} tokens, which leaves no room in `max_length: {longest}`.")
        for answer in answers:
            tokens = len(encoder.answered(row, answer).ids)
            if limit is not None and tokens > limit:
                raise UserError(
                    f"prompt and `{answer}` have {tokens} tokens, more than the model takes (max_position_embeddings "
                    f"{positions})."
                )

    return check


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

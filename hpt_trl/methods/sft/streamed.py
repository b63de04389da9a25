"""Streams of rows for TRL's SFTTrainer."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, cast

from datasets import Features, List, Value
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig

from hpt_trl.data.layouts import Splits
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.streaming import StreamedRows
from hpt_trl.errors import UserError
from hpt_trl.methods.sft.turns import encode
from hpt_trl.recipes.recipe import StageInputs

logger = logging.getLogger(__name__)

_TEXT = Features({"text": Value("string")})
_ENCODED = Features({"input_ids": List(Value("int64")), "labels": List(Value("int64"))})


def streamed_rows(splits: Splits, encoder: Encoder, config: SFTConfig, arguments: Any) -> StreamedRows:
    """The rows of a stream as the trainer reads them, those of `training_splits`."""
    of_row = _document(encoder) if splits.layout == "documents" else _demonstration(encoder, config, arguments)
    return StreamedRows(splits, arguments, cast(PreTrainedTokenizerBase, encoder.processing_class), of_row)


def streaming_arguments(inputs: StageInputs) -> dict[str, Any]:
    """What a trainer takes of a stream: its rows in their order, or drawn by the seed, and who tells their faults."""
    config = inputs.config
    rows = streamed_rows(inputs.splits, inputs.encoder, config, inputs.arguments)
    in_order = config.train_sampling_strategy == "sequential"
    dataset = rows.as_dataset(
        _TEXT if inputs.splits.layout == "documents" else _ENCODED,
        seed=config.seed,
        buffer=0 if in_order else inputs.arguments.shuffle_buffer,
    )
    return {"train_dataset": dataset, "callbacks": [*inputs.callbacks, ToldFaults(rows)]}


def streamed_documents(splits: Splits, arguments: Any) -> Iterator[str]:
    """The texts of a stream of documents, from the first on."""
    return (row["text"] for row in StreamedRows(splits, arguments, None, lambda row: row).once())


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


def _document(encoder: Encoder) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def of_row(row: dict[str, Any]) -> dict[str, Any]:
        if encoder.embedded is not None:
            encoder.document(row["text"])
        return {"text": row["text"]}

    return of_row


def _demonstration(encoder: Encoder, config: SFTConfig, arguments: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    longest = None if config.packing else config.max_length
    kept = slice(None, longest) if config.truncation_mode == "keep_start" else slice(-(longest or 0), None)

    def of_row(row: dict[str, Any]) -> dict[str, Any]:
        encoded = encode(row, encoder, config, arguments)
        if not any(encoded.trained[kept]):
            raise UserError(f"none of the tokens that are trained on are among the {longest} that `max_length` keeps.")
        return {"input_ids": encoded.ids, "labels": encoded.labels}

    return of_row

"""Rows of a stream as TRL's SFTTrainer reads them, those of `training_splits`."""

from collections.abc import Iterator
from typing import Any

from datasets import Features, List, Value
from trl import SFTConfig

from hpt_trl.data.layouts import Splits
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.streaming import StreamedRows
from hpt_trl.errors import UserError
from hpt_trl.methods.sft.turns import encode
from hpt_trl.methods.streamed import OfRow, streaming_arguments
from hpt_trl.recipes.recipe import StageInputs

_TEXT = Features({"text": Value("string")})
_ENCODED = Features({"input_ids": List(Value("int64")), "labels": List(Value("int64"))})


def streamed_training(inputs: StageInputs) -> dict[str, Any]:
    """What the trainer takes of a stream of demonstrations or documents."""
    if inputs.splits.layout == "documents":
        return streaming_arguments(inputs, _document(inputs.encoder), _TEXT)
    return streaming_arguments(inputs, _demonstration(inputs.encoder, inputs.config, inputs.arguments), _ENCODED)


def streamed_documents(splits: Splits, arguments: Any) -> Iterator[str]:
    """The texts of a stream of documents, from the first on."""
    return (row["text"] for row in StreamedRows(splits, arguments, None, lambda row: row).once())


def _document(encoder: Encoder) -> OfRow:
    def of_row(row: dict[str, Any]) -> dict[str, Any]:
        if encoder.embedded is not None:
            encoder.document(row["text"])
        return {"text": row["text"]}

    return of_row


def _demonstration(encoder: Encoder, config: SFTConfig, arguments: Any) -> OfRow:
    longest = None if config.packing else config.max_length
    kept = slice(None, longest) if config.truncation_mode == "keep_start" else slice(-(longest or 0), None)

    def of_row(row: dict[str, Any]) -> dict[str, Any]:
        encoded = encode(row, encoder, config, arguments)
        if not any(encoded.trained[kept]):
            raise UserError(f"none of the tokens that are trained on are among the {longest} that `max_length` keeps.")
        return {"input_ids": encoded.ids, "labels": encoded.labels}

    return of_row

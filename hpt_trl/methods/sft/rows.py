"""Rows of demonstrations as the ids that SFTTrainer trains on, and the labels that have a loss.

TRL would train on the answer alone where a conversation has several turns of the assistant, and only warns where the
chat template does not continue the prompt. Here every turn is found in what the template renders, or the row is
refused.
"""

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from hpt_trl.data.loading import columns_for
from hpt_trl.data.rendering import WHOLE, Encoded, Encoder

# What SFTTrainer reads of a row. A column `text` beside them would get the end-of-sequence token in their stead.
COLUMNS = ("prompt", "completion", "tools", "chat_template_kwargs", "image", "images")


@dataclass
class TurnArguments:
    """Which turns of a conversation are trained."""

    train_on_turns: str = field(
        default="all",
        metadata={
            "help": "Turns of the assistant that have a loss: `all` (of `messages` every one, of prompt and completion "
            "those of the completion), or `last`.",
            "choices": ["all", "last"],
        },
    )


def encode(
    row: dict[str, Any], encoder: Encoder, *, last_turn_only: bool = False, completion_only: bool = True
) -> Encoded:
    """A row as it is trained on.

    Args:
        completion_only: False gives every token a loss (`completion_only_loss: false`).

    Raises:
        UserError: the answer would be trained otherwise than it is written.
    """
    encoded = encoder.answered(row, "completion", last_turn_only=last_turn_only)
    return encoded if completion_only else Encoded(encoded.ids, [1] * len(encoded.ids), encoded.turns, encoded.turns)


def training_rows(
    rows: Dataset | None, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, config: Any, arguments: Any
) -> Dataset | None:
    """Rows with the columns `input_ids` and `labels`; a vision-language model's as the trainer itself reads them.

    Args:
        rows: columns prompt and completion.
        config: the trainer's; its `assistant_only_loss` is what is done here anyway.
        arguments: the recipe's, with `TurnArguments`.
    """
    if rows is None or isinstance(tokenizer, ProcessorMixin):
        return columns_for(rows, *COLUMNS)
    config.assistant_only_loss = False
    if config.eos_token is not None:
        tokenizer.eos_token = config.eos_token
    last, completion_only = arguments.train_on_turns == "last", config.completion_only_loss is not False
    encoder = Encoder(tokenizer)

    def ids_and_labels(row: dict[str, Any]) -> dict[str, list[int]]:
        encoded = encode(row, encoder, last_turn_only=last, completion_only=completion_only)
        return {"input_ids": encoded.ids, "labels": encoded.labels}

    kept = columns_for(rows, *COLUMNS, WHOLE)
    assert kept is not None
    return kept.map(
        ids_and_labels, remove_columns=kept.column_names, num_proc=config.dataset_num_proc, desc="Encoding rows"
    )

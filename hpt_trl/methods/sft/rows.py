"""Rows of demonstrations as the ids that SFTTrainer trains on, and the labels that have a loss.

TRL would train on the answer alone where a conversation has several turns of the assistant, and only warns where the
chat template does not continue the prompt. Here every turn is found in what the template renders, or the row is
refused.
"""

from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from hpt_trl.data.layouts import Splits
from hpt_trl.data.loading import columns_for
from hpt_trl.data.messages import IMAGES
from hpt_trl.data.rendering import WHOLE, Encoder
from hpt_trl.data.row_lengths import Asked, Length
from hpt_trl.errors import UserError
from hpt_trl.methods.sft.images import AnswerLabels, answers_apart, part
from hpt_trl.methods.sft.turns import encode, is_whole, last_alone, trains_everything
from hpt_trl.recipes.recipe import Recipe

# What SFTTrainer reads of a row. A column `text` beside them would get the end-of-sequence token in their stead.
_COLUMNS = ("prompt", "completion", "tools", "chat_template_kwargs", WHOLE, *IMAGES)


def training_splits(
    splits: Splits, encoder: Encoder, config: SFTConfig, arguments: Any
) -> tuple[Dataset | None, Dataset | None]:
    """Training and held-out rows as the trainer reads them.

    Demonstrations get the columns `input_ids` and `labels`, those with images what `answers_apart` returns; documents
    keep their text. Nothing is left to do for the trainer's own `assistant_only_loss`, which is switched off.
    """
    train, test = (_as_trained(rows, encoder, config, arguments) for rows in (splits.train, splits.test))
    if config.assistant_only_loss:
        config.assistant_only_loss = False
        config.completion_only_loss = None
    return train, test


def _as_trained(rows: Dataset | None, encoder: Encoder, config: SFTConfig, arguments: Any) -> Dataset | None:
    if rows is None or "prompt" not in rows.column_names:
        return columns_for(rows, "text")
    kept = rows.select_columns([name for name in _COLUMNS if name in rows.column_names])
    if encoder.reads_images(rows.column_names):
        if trains_everything(config):
            return kept
        return answers_apart(kept, whole=lambda row: is_whole(row, config), last_turn_only=last_alone(arguments))

    def ids_and_labels(row: dict[str, Any]) -> dict[str, list[int]]:
        encoded = encode(row, encoder, config, arguments)
        return {"input_ids": encoded.ids, "labels": encoded.labels}

    return kept.map(
        ids_and_labels, remove_columns=kept.column_names, num_proc=config.dataset_num_proc, desc="Encoding rows"
    )


def try_row(recipe: Recipe, row: dict[str, Any], encoder: Encoder, column: str) -> dict[Asked, Length]:
    """Encode a row as the trainer on demonstrations does it.

    Returns:
        The tokens of its prompt, and of the whole row.

    Raises:
        UserError: it would be trained otherwise than it is written.
    """
    config, arguments = recipe.config, recipe.arguments
    if encoder.is_processor and {*IMAGES} & row.keys():
        for name in ("tools", "chat_template_kwargs"):
            if row.get(name):
                raise UserError(
                    f"`{name}` beside images: TRL renders such rows without it. Write it into the messages, or drop "
                    "the column."
                )
        if not trains_everything(config):
            part(row, whole=is_whole(row, config), last_turn_only=last_alone(arguments))
    whole = encode(row, encoder, config, arguments)
    lengths = {("prompt",): len(encoder.prompt(row)), ("prompt", column): len(whole.ids)}
    return {Asked(columns): Length(tokens) for columns, tokens in lengths.items()}


def refuse_turns_of_documents(recipe: Recipe, splits: Splits) -> None:
    """Refuse a loss on turns where there are none.

    Raises:
        UserError: the key that asks for it.
    """
    if splits.layout == "documents" and recipe.config.assistant_only_loss:
        raise recipe.error(
            "assistant_only_loss", f"true, but {splits.source} holds documents, which have no turns; drop the line."
        )


def label_answers(trainer: SFTTrainer, encoder: Encoder, config: SFTConfig) -> None:
    """Let a trainer on rows with images, those of `training_splits`, train the assistant's turns alone."""
    if trains_everything(config):
        return
    collate: Any = trainer.data_collator
    collate.completion_only_loss = True
    trainer.data_collator = AnswerLabels(collate, lambda row: encoder.answered(row, "completion"))

"""Conversations with images, of which TRL's collator for images would train all that follows the prompt.

The collator takes prompt and completion apart and reads the images of the prompt. So the completion is made to begin
with the first turn that is trained, and what the user says in it loses its labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets

from hpt_trl.data.messages import IMAGES
from hpt_trl.data.rendering import Encoded, assistant_turns
from hpt_trl.errors import UserError


def answers_apart(rows: Dataset, *, whole: Callable[[dict[str, Any]], bool], last_turn_only: bool) -> Dataset:
    """The rows with their completion beginning at the first turn that is trained.

    Args:
        rows: columns prompt, completion and those of the images; others are dropped, as TRL reads none.
        whole: of a row: whether the turns of its prompt are trained as well.

    Raises:
        UserError: see `part`.
    """
    texts = [name for name in rows.column_names if name not in IMAGES]
    # The images are not read: only the texts go through the function.
    apart = rows.select_columns(texts).map(
        lambda row: part(row, whole=whole(row), last_turn_only=last_turn_only),
        remove_columns=texts,
        desc="Parting answers",
    )
    return concatenate_datasets([rows.remove_columns(texts), apart], axis=1)


def part(row: dict[str, Any], *, whole: bool, last_turn_only: bool) -> dict[str, Any]:
    """Prompt and completion of a row, parted before the first turn that is trained.

    Raises:
        UserError: an image stands after that turn.
    """
    prompt, answer = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": answer}
    _, trained = assistant_turns(prompt, answer, whole=whole, last_turn_only=last_turn_only)
    messages = [*prompt, *answer]
    prompt, answer = messages[: trained[0]], messages[trained[0] :]
    if any(piece.get("type") == "image" for message in answer for piece in _parts(message)):
        raise UserError(
            "an image stands after the first answer that is trained, where TRL reads none: write `train_on_turns: "
            "last`, or a row of its own for each answer."
        )
    return {"prompt": prompt, "completion": answer}


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return content if isinstance(content, list) else []


@dataclass
class AnswerLabels:
    """TRL's collator for images, with labels for the assistant's turns alone.

    Attributes:
        collate: TRL's, for rows of `answers_apart`; gives labels to the whole completion.
        encode: of a row, the tokens of its completion and which have a loss.
    """

    collate: Any
    encode: Callable[[dict[str, Any]], Encoded]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        # Before the call, which takes the images out of the rows.
        every = [self.encode(example) for example in examples]
        batch = self.collate(examples)
        for labels, encoded in zip(batch["labels"], every, strict=True):
            places = (labels != -100).nonzero().squeeze(1)
            ids, trained = (
                torch.tensor(values[encoded.context :][: len(places)], dtype=torch.long)
                for values in (encoded.ids, encoded.trained)
            )
            if not torch.equal(labels[places], ids):
                raise UserError("the tokens of an answer are not those that were checked; this is a fault of hpt-trl.")
            labels[places[trained == 0]] = -100
        return batch

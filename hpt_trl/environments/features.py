"""Image features of a processor, kept piece by piece and joined for a batch of sequences.

Three layouts are known, told by the tensors themselves:

    patches    Qwen2-VL and its like: `pixel_values` (patches, values) with `image_grid_thw` (images, 3)
    rows       Idefics3, SmolVLM: `pixel_values` (rows, images, channels, height, width), padded with empty images
    images     LLaVA, Gemma 3: `pixel_values` (images, channels, height, width)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hpt_trl.errors import UserError

Features = dict[str, Tensor]

_KNOWN = {"pixel_values", "pixel_attention_mask", "image_grid_thw"}
# What a processor tells of each token, and not of images.
TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")


def features_of(inputs: dict[str, Any], processor: str) -> Features:
    """The image features among a processor's outputs.

    Args:
        inputs: tensors by name.
        processor: its name, for the message.

    Raises:
        UserError: they are of a layout that cannot be joined.
    """
    found = {
        name: value
        for name, value in inputs.items()
        if name not in ("input_ids", "attention_mask", *TOKEN_TYPES) and isinstance(value, Tensor)
    }
    unknown = sorted(set(found) - _KNOWN)
    if unknown or (found and "image_grid_thw" not in found and found["pixel_values"].ndim not in (4, 5)):
        raise UserError(
            f"images in environments are not known for {processor}, whose features are {', '.join(sorted(found))}; "
            "known are those of Qwen2-VL and Qwen2.5-VL, Idefics3 and SmolVLM, LLaVA and Gemma 3."
        )
    return found


def join(sequences: Sequence[Sequence[Features]]) -> dict[str, Any]:
    """Image features of a batch as the model takes them; empty where no sequence has an image.

    Args:
        sequences: of each sequence, the features of its pieces in order.
    """
    pieces = [piece for sequence in sequences for piece in sequence]
    if not pieces:
        return {}
    first = pieces[0]
    if first["pixel_values"].ndim == 5:
        return {name: _stacked([[piece[name] for piece in sequence] for sequence in sequences]) for name in first}
    return {name: torch.cat([piece[name] for piece in pieces]) for name in first}


def _stacked(sequences: list[list[Tensor]]) -> Tensor:
    """(1, images, ...) each, as (sequences, most images, ...), filled up with zeros, which the models leave out."""
    like = next(piece for sequence in sequences for piece in sequence)
    most = max(sum(piece.shape[1] for piece in sequence) for sequence in sequences)
    # A processor makes all images as large as one another.
    stacked = like.new_zeros((len(sequences), most, *like.shape[2:]))
    for row, sequence in enumerate(sequences):
        place = 0
        for piece in sequence:
            stacked[row, place : place + piece.shape[1]] = piece[0]
            place += piece.shape[1]
    return stacked

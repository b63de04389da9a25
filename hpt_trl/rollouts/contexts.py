"""One forward pass over the contexts of rollouts, and its values back in the layout of prompts and completions.

A rollout in an environment stands in the trainer's tensors as one row: its segments one after the other (see
`hpt_trl.environments.pieces.Flat`). The model must read each of them by itself, with its own images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from trl.trainer.utils import pad

from hpt_trl.environments.features import join
from hpt_trl.environments.pieces import Segment


@dataclass
class Contexts:
    """The segments of some rows as one batch.

    Attributes:
        arguments: `input_ids` and `attention_mask` (segments, width), `logits_to_keep`, image features.
        rows: row of each drawn token, and ...
        columns: ... its place among the row's tokens, those of all segments counted.
        segments: segment of each drawn token, and ...
        places: ... its place in the segment.
        fillers: how many of the last segments belong to no row.
    """

    arguments: dict[str, Any]
    rows: Tensor
    columns: Tensor
    segments: Tensor
    places: Tensor
    fillers: int

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[Segment]],
        pad_token_id: int,
        device: torch.device,
        *,
        multiple: int | None = None,
        type_name: str | None = None,
        fillers: Sequence[Segment] = (),
    ) -> "Contexts":
        """Of the segments of each row.

        Args:
            multiple: the width is padded to a multiple of it.
            type_name: what the model calls the types of tokens.
            fillers: segments that are passed through the model for nothing.
        """
        every = [*(segment for row in rows for segment in row), *fillers]

        def joined(values: list[Tensor], fill: int) -> Tensor:
            return pad(values, padding_value=fill, padding_side="right", pad_to_multiple_of=multiple).to(device)

        features = {name: value.to(device) for name, value in join([segment.features for segment in every]).items()}
        arguments: dict[str, Any] = {
            "input_ids": joined([segment.ids for segment in every], pad_token_id),
            "attention_mask": joined([torch.ones_like(segment.ids) for segment in every], 0),
            **features,
        }
        if features:
            # By which TRL finds the features of a row.
            arguments["num_images"] = [segment.images for segment in every]
        if type_name is not None and any(segment.types is not None for segment in every):
            types = [torch.zeros_like(segment.ids) if segment.types is None else segment.types for segment in every]
            arguments[type_name] = joined(types, 0)
        firsts = [int(segment.drawn.argmax()) if segment.drawn.any() else len(segment) - 1 for segment in every]
        arguments["logits_to_keep"] = arguments["input_ids"].size(1) - max(min(firsts), 1)
        of_rows, columns, segments, places = _index(rows).to(device).unbind(1)
        return cls(arguments, of_rows, columns, segments, places, len(fillers))

    def scattered(self, values: Float[Tensor, "segments kept"], like: Tensor, keep: int) -> Float[Tensor, "rows keep"]:
        """Values of the drawn tokens where the rows of `like` hold these tokens, 0 everywhere else.

        Args:
            like: `attention_mask` of the rows, (rows, width); its first 1 is where a row begins.
            keep: columns that are wanted, the last ones.
        """
        width = self.arguments["input_ids"].size(1)
        starts = like.int().argmax(1)
        columns = starts[self.rows] + self.columns - (like.size(1) - keep)
        # A rollout that was masked for being cut may have lost its columns.
        there = (columns >= 0) & (columns < keep)
        rows, columns, segments = self.rows[there], columns[there], self.segments[there]
        found = values[segments, self.places[there] - (width - values.size(1))]
        scattered = values.new_zeros(len(like), keep).index_put((rows, columns), found)
        if self.fillers and values.requires_grad:
            # Weights that only images reach must take part in the backward pass of every process.
            scattered = scattered + 0.0 * values[-self.fillers :].sum()
        return scattered


def _index(rows: Sequence[Sequence[Segment]]) -> Tensor:
    """Row, place in the row, segment and place in the segment of each drawn token; shape (tokens, 4)."""
    found, number = [torch.zeros(0, 4, dtype=torch.long)], 0
    for row, segments in enumerate(rows):
        before = 0
        for segment in segments:
            places = segment.drawn.nonzero().squeeze(1)
            ones = torch.ones_like(places)
            found.append(torch.stack([ones * row, places + before, ones * number, places], dim=1))
            before, number = before + len(segment), number + 1
    return torch.cat(found)

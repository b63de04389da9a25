"""Rows of a generation batch without padding: taken out of TRL's padded tensors, and padded again.

TRL pads a generation batch once, to its longest prompt and completion. Dropping rows, adding demonstrations and
padding each micro-batch only to its own longest row all need the rows one by one.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import pad, split_pixel_values_by_grid

from hpt_trl.environments.pieces import Segment

# Per-token tensors of the completion and what stands in padding, where the loss mask is 0.
_COMPLETION_FILL = {
    "tool_mask": 0,
    "old_per_token_logps": 0.0,
    "ref_per_token_logps": 0.0,
    "sampling_per_token_logps": 0.0,
    "importance_sampling_ratio": 1.0,
    "values": 0.0,
    "returns": 0.0,
}
# ... of which TRL gives this one a single column where it is a sequence's, which a sum over columns must not repeat.
_ONE_COLUMN = "importance_sampling_ratio"
# Per-token tensors of prompt and completion together.
_SEQUENCE_KEYS = ("token_type_ids", "mm_token_type_ids")
# Under which a batch holds the contexts of its rollouts in an environment.
SEGMENTS = "segments"
_TEXT_KEYS = {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "row", SEGMENTS}


def loss_mask(batch: dict[str, Any]) -> Tensor:
    """1.0 on the policy's own tokens, 0.0 on a tool's and on padding. Shape: (rows, completion tokens)."""
    mask = batch["completion_mask"]
    return (mask * batch["tool_mask"] if "tool_mask" in batch else mask).float()


@dataclass(eq=False)
class Row:
    """One sequence: a rollout, or a demonstration with the same prompt and images."""

    prompt_ids: Tensor  # (prompt tokens,)
    completion_ids: Tensor  # (completion tokens,)
    advantage: Tensor  # (), or (completion tokens,)
    completion_mask: Tensor  # (completion tokens,)
    tokens: dict[str, Tensor] = field(default_factory=dict)  # name -> (completion tokens,), or () of the sequence
    sequence: dict[str, Tensor] = field(default_factory=dict)  # name -> (prompt + completion tokens,)
    images: dict[str, Any] = field(default_factory=dict)  # name -> the row's part, leading dimension kept
    segments: list[Segment] | None = None  # of a rollout in an environment: its contexts, which hold their own images
    window: int = 0  # optimizer step of the generation batch that trains the row
    micro: int = 0  # micro-batch of that step in which the base would train it
    prompt: int = 0  # index of the prompt over all processes
    solved: bool = False
    dead: bool = False  # a rollout with advantage 0
    gated: bool = False  # a rollout that has no part in the loss
    masked: bool = False  # a rollout without a token that has a loss
    signed: float = 0.0  # factor of SRFT's loss of a rollout
    sft_coefficient: float = 0.0
    off_advantage: float = 0.0  # off-policy coefficient times the demonstration's advantage
    truncated: bool = False

    @property
    def is_demonstration(self) -> bool:
        return self.sft_coefficient != 0.0 or self.off_advantage != 0.0

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence that a model reads for it."""
        return [len(self)] if self.segments is None else [len(segment) for segment in self.segments]

    def with_completion(self, completion_ids: Tensor, **changes: Any) -> "Row":
        """The same prompt and images with another completion; per-token tensors of the old one are left behind.

        In an environment the contexts are the new completion's, and are among the changes.
        """
        prompt_length = len(self.prompt_ids)
        sequence = {
            name: torch.cat([value[:prompt_length], value.new_zeros(len(completion_ids))])
            for name, value in self.sequence.items()
        }
        return Row(
            prompt_ids=self.prompt_ids,
            completion_ids=completion_ids,
            advantage=self.advantage.new_zeros(()),
            completion_mask=torch.ones_like(completion_ids),
            sequence=sequence,
            images=self.images,
            prompt=self.prompt,
            window=self.window,
            micro=self.micro,
            **changes,
        )

    def filler(self) -> "Row":
        """The shortest row that the stock loss accepts and that carries nothing: its loss mask is 0.

        A prompt with images is kept whole, since its image tokens must match the image features.
        """
        segments = None if self.segments is None else [Segment.empty(int(self.completion_ids[0]))]
        row = self.with_completion(self.completion_ids[:1], segments=segments)
        row.completion_mask = torch.zeros_like(row.completion_mask)
        row.tokens = {
            name: value.new_full((1,) * value.ndim, _COMPLETION_FILL[name]) for name, value in self.tokens.items()
        }
        if not self.images:
            row.prompt_ids = row.prompt_ids[-1:]
            row.sequence = {name: value[-2:] for name, value in row.sequence.items()}
        return row

    def to(self, device: torch.device | str) -> "Row":
        """A text row with its tensors copied to `device`. Rows are views: only a copy can be sent without its batch."""

        def copy(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(device, copy=True) for name, value in values.items()}

        return replace(
            self,
            prompt_ids=self.prompt_ids.to(device, copy=True),
            completion_ids=self.completion_ids.to(device, copy=True),
            completion_mask=self.completion_mask.to(device, copy=True),
            advantage=self.advantage.to(device, copy=True),
            tokens=copy(self.tokens),
            sequence=copy(self.sequence),
        )


def unpad(padded: dict[str, Any]) -> list[Row]:
    """Rows of a padded batch as TRL's `_generate_and_score_completions` lays it out."""
    batch: dict[str, Any] = split_pixel_values_by_grid(padded)
    prompt_width = batch["prompt_ids"].size(1)
    prompt_lengths = batch["prompt_mask"].sum(1).tolist()
    # A truncated completion may be masked altogether; one token stays so that the row has a shape.
    completion_lengths = batch["completion_mask"].sum(1).clamp(min=1).tolist()
    per_token = [name for name in _COMPLETION_FILL if name in batch]
    sequence_keys = [name for name in _SEQUENCE_KEYS if name in batch]
    image_keys = [
        name
        for name, value in batch.items()
        if name not in _TEXT_KEYS
        and name not in per_token
        and name not in sequence_keys
        and (isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0))
    ]
    rows = []
    for i, (p, c) in enumerate(zip(prompt_lengths, completion_lengths, strict=True)):
        advantage = batch["advantages"][i]
        rows.append(
            Row(
                prompt_ids=batch["prompt_ids"][i, prompt_width - p :],
                completion_ids=batch["completion_ids"][i, :c],
                advantage=advantage if advantage.ndim == 0 else advantage[:c],
                completion_mask=batch["completion_mask"][i, :c],
                tokens={
                    name: batch[name][i, 0] if name == _ONE_COLUMN and batch[name].size(1) == 1 else batch[name][i, :c]
                    for name in per_token
                },
                sequence={name: batch[name][i, prompt_width - p : prompt_width + c] for name in sequence_keys},
                images={name: _image_part(batch[name], i) for name in image_keys},
                segments=batch[SEGMENTS][i] if SEGMENTS in batch else None,
            )
        )
    return rows


def unpad_shortened(padded: dict[str, Any]) -> list[Row]:
    """The same, where of a row without a token that has a loss nothing is used: a filler stands in its place."""
    rows = unpad(padded)
    for place, trained in enumerate(loss_mask(padded).any(1).tolist()):
        if not trained:
            rows[place] = rows[place].filler()
            rows[place].masked = True
    return rows


def _image_part(value: list | Tensor, index: int) -> list | Tensor:
    if isinstance(value, Tensor):
        return value[index : index + 1]
    part = value[index]
    return part if isinstance(part, Tensor) else [part]


def collate(rows: list[Row], pad_token_id: int, pad_to_multiple_of: int | None = None) -> dict[str, Any]:
    """Rows as one padded batch in TRL's layout: prompts padded left, completions right, no wider than needed."""

    def join(values: list[Tensor], fill: Any, side: str) -> Tensor:
        return pad(values, padding_value=fill, padding_side=side, pad_to_multiple_of=pad_to_multiple_of)

    batch: dict[str, Any] = {
        "prompt_ids": join([row.prompt_ids for row in rows], pad_token_id, "left"),
        "prompt_mask": join([torch.ones_like(row.prompt_ids) for row in rows], 0, "left"),
        "completion_ids": join([row.completion_ids for row in rows], pad_token_id, "right"),
        "completion_mask": join([row.completion_mask for row in rows], 0, "right"),
    }

    def join_tokens(values: list[Tensor], fill: float) -> Tensor | None:
        """(rows, tokens), or None where every row has one number for all of its tokens."""
        if max(value.ndim for value in values) == 0:
            return None
        # Fillers carry one number whatever the rollouts carry, and so does a batch of single tokens.
        return join([v.expand(len(row.completion_ids)) for v, row in zip(values, rows, strict=True)], fill, "right")

    advantages = [row.advantage for row in rows]
    per_token = join_tokens(advantages, 0.0)
    batch["advantages"] = torch.stack(advantages) if per_token is None else per_token
    for name in rows[0].tokens:
        values = [row.tokens[name] for row in rows]
        per_token = join_tokens(values, _COMPLETION_FILL[name])
        batch[name] = torch.stack(values).unsqueeze(1) if per_token is None else per_token
    for name in rows[0].sequence:
        prompts = [row.sequence[name][: len(row.prompt_ids)] for row in rows]
        completions = [row.sequence[name][len(row.prompt_ids) :] for row in rows]
        batch[name] = torch.cat([join(prompts, 0, "left"), join(completions, 0, "right")], dim=1)
    return batch | _join_images(rows)


def _join_images(rows: list[Row]) -> dict[str, Any]:
    if rows[0].segments is not None:
        return {SEGMENTS: [row.segments for row in rows]}
    joined: dict[str, Any] = {}
    for name, first in rows[0].images.items():
        parts = [row.images[name] for row in rows]
        joined[name] = torch.cat(parts) if isinstance(first, Tensor) else [item for part in parts for item in part]
    return joined


@dataclass
class Forward:
    """One forward pass over rows without a gap between prompt and completion, padded on the right only.

    TRL pads prompts and completions apart, to the longest of each; here a batch is as wide as its longest row.
    """

    arguments: dict[str, Any]  # `input_ids` and `attention_mask` (rows, width), `logits_to_keep`, images
    starts: Tensor  # (rows,) where each completion starts among the kept positions
    lengths: Tensor  # (rows,) of the completions

    @classmethod
    def of(cls, rows: list[Row], pad_token_id: int, pad_to_multiple_of: int | None = None) -> "Forward":
        def join(values: list[Tensor], fill: int) -> Tensor:
            return pad(values, padding_value=fill, padding_side="right", pad_to_multiple_of=pad_to_multiple_of)

        masks = [torch.cat([torch.ones_like(row.prompt_ids), row.completion_mask]) for row in rows]
        arguments: dict[str, Any] = {
            "input_ids": join([torch.cat([row.prompt_ids, row.completion_ids]) for row in rows], pad_token_id),
            "attention_mask": join(masks, 0),
            **{name: join([row.sequence[name] for row in rows], 0) for name in rows[0].sequence},
            **_join_images(rows),
        }
        shortest = min(len(row.prompt_ids) for row in rows)
        arguments["logits_to_keep"] = arguments["input_ids"].size(1) - shortest
        device = rows[0].prompt_ids.device
        return cls(
            arguments,
            starts=torch.tensor([len(row.prompt_ids) - shortest for row in rows], device=device),
            lengths=torch.tensor([len(row.completion_ids) for row in rows], device=device),
        )

    def completions(self, values: Tensor, rows: slice, width: int) -> Tensor:
        """Per-token values (rows, logits_to_keep) of some rows as (rows, width) from the completion's first token."""
        values, starts, lengths = values[rows], self.starts[rows].unsqueeze(1), self.lengths[rows].unsqueeze(1)
        offsets = torch.arange(width, device=values.device)
        picked = values.gather(1, (starts + offsets).clamp(max=values.size(1) - 1))
        return torch.where(offsets < lengths, picked, 0.0)

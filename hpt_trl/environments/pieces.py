"""The pieces that a rollout's context is made of, and the contexts in which its tokens were drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpt_trl.environments.features import Features


@dataclass(frozen=True, eq=False)
class Piece:
    """A prompt, a turn or an observation as token ids.

    Attributes:
        ids: token ids, image tokens included.
        features: of its images; empty without one.
        pictures: the images themselves, which engines of their own processors are given.
        types: the processor's type of each token, where it gives types.
    """

    ids: list[int]
    features: Features
    pictures: tuple[Any, ...] = ()
    types: list[int] | None = None

    @property
    def images(self) -> int:
        """How many images it holds."""
        return len(self.pictures)


@dataclass(frozen=True, eq=False)
class Context:
    """What a model reads before it draws a turn.

    Attributes:
        ids: token ids.
        features: of its images, piece by piece.
        pictures: the images themselves.
        types: type of each token, or None.
    """

    ids: list[int]
    features: tuple[Features, ...]
    pictures: tuple[Any, ...]
    types: list[int] | None

    @property
    def images(self) -> int:
        """How many images it holds."""
        return len(self.pictures)

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> "Context":
        return cls(
            ids=[token for piece in pieces for token in piece.ids],
            features=tuple(piece.features for piece in pieces if piece.features),
            pictures=tuple(picture for piece in pieces for picture in piece.pictures),
            types=_types(pieces),
        )


@dataclass(frozen=True, eq=False)
class Segment:
    """A context together with the turns that were drawn in it; a rollout whose pictures are folded away has several.

    Attributes:
        ids: token ids, shape (tokens,).
        drawn: 1 for a token that the model drew here, shape (tokens,).
        features: of its images, piece by piece.
        images: how many.
        types: type of each token, shape (tokens,), or None.
    """

    ids: Tensor
    drawn: Tensor
    features: tuple[Features, ...]
    images: int
    types: Tensor | None

    @classmethod
    def of(cls, pieces: Sequence[Piece], drawn: Sequence[bool]) -> "Segment":
        """Of pieces, and whether each was drawn here."""
        context = Context.of(pieces)
        mask = [int(own) for piece, own in zip(pieces, drawn, strict=True) for _ in piece.ids]
        return cls(
            ids=torch.tensor(context.ids),
            drawn=torch.tensor(mask),
            features=context.features,
            images=context.images,
            types=None if context.types is None else torch.tensor(context.types),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def empty(cls, token: int) -> "Segment":
        """Two tokens, none of them drawn: the shortest context that a model takes."""
        return cls(torch.tensor([token, token]), torch.zeros(2, dtype=torch.long), (), 0, None)


@dataclass(frozen=True)
class Flat:
    """The segments of a rollout one after the other, as a trainer on prompts and completions takes it.

    The first segment's prompt is the prompt; all that follows, the whole later segments included, is the completion.

    Attributes:
        prompt_ids: tokens before the first one drawn.
        completion_ids: the others.
        drawn: 1 for a token of the completion that the model drew.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    drawn: list[int]

    @classmethod
    def of(cls, segments: Sequence[Segment], prompt: int, end: int) -> "Flat":
        """Of segments.

        Args:
            prompt: tokens of the prompt, with which the first begins.
            end: stands, without a loss, for the completion of a rollout that drew nothing.
        """
        ids = [token for segment in segments for token in segment.ids.tolist()]
        drawn = [value for segment in segments for value in segment.drawn.tolist()]
        return cls(ids[:prompt], ids[prompt:] or [end], drawn[prompt:] or [0])


def _types(pieces: Sequence[Piece]) -> list[int] | None:
    if all(piece.types is None for piece in pieces):
        return None
    return list(_type_ids(pieces))


def _type_ids(pieces: Sequence[Piece]) -> Iterator[int]:
    # Pieces of text alone have no types of their own: they are 0, as every processor gives them.
    for piece in pieces:
        yield from piece.types if piece.types is not None else [0] * len(piece.ids)

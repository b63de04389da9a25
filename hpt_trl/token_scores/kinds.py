"""Kinds of scores that a frozen model gives each token: a reference's losses, a value model's values."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


def scored_positions(labels: torch.Tensor) -> torch.Tensor:
    """Return the mask (rows, tokens) of the labels that have a loss: the first token of a row has nothing before it."""
    scored = labels != -100
    scored[:, 0] = False
    return scored


def valued_positions(labels: torch.Tensor) -> torch.Tensor:
    """Return the mask (rows, tokens) of what tells how a label changed the value: its token and the one before it."""
    scored = scored_positions(labels)
    before = torch.zeros_like(scored)
    before[:, :-1] = scored[:, 1:]
    return scored | before


def rounding_of_losses(scores: np.ndarray, precision: float) -> float:
    """See `ScoreKind.rounding`."""
    # A few units of the last place; the losses of another model, or of other tokens, differ by tenths and more.
    return 0.02 + 8 * precision


def rounding_of_values(scores: np.ndarray, precision: float) -> float:
    """See `ScoreKind.rounding`."""
    # A bfloat16 trunk loses up to 4 % of what tells tokens apart, their spread, by rounding; another critic's values
    # lie about a spread away, on any scale. In float32 the head rounds numbers that a shift may have made large.
    shifted = 8 * np.finfo(np.float32).eps * np.abs(scores).max()
    return float((0.05 + 16 * precision) * scores.std() + shifted)


@dataclass(frozen=True)
class ScoreKind:
    """What the scores of a cache are.

    Attributes:
        name: of the scores in a batch.
        prefix: of the recipe keys that say which model it is, how it is loaded and where the cache lies.
        owner, plural, one: how messages name the model, its scores, and one of them.
        unit: of a score, with a space before it.
        dtype: of a score on disk and in a batch.
        magic: 8 bytes that a segment begins with.
        suffix: that a segment's name ends with.
        positions: of labels (rows, tokens): which tokens have a score.
        rounding: of scores that were made anew and the distance from 1 to the next number of their computation: how far
            apart, on average, kernels and batches that round differently may leave the same scores.
    """

    name: str
    prefix: str
    owner: str
    plural: str
    one: str
    unit: str
    dtype: np.dtype
    magic: bytes
    suffix: str
    positions: Callable[[torch.Tensor], torch.Tensor]
    rounding: Callable[[np.ndarray, float], float]

    @property
    def dir_key(self) -> str:
        """Recipe key of the cache's folder."""
        return f"{self.prefix}_cache_dir"

    @property
    def token_bytes(self) -> int:
        """Bytes of a score."""
        return self.dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same type of PyTorch's."""
        return torch.float16 if self.token_bytes == 2 else torch.float32


REFERENCE_NLL = ScoreKind(
    name="reference_nll",
    prefix="reference",
    owner="reference",
    plural="losses",
    one="loss",
    unit=" nats",
    dtype=np.dtype("<f2"),
    magic=b"hptnll01",
    suffix=".nll",
    positions=scored_positions,
    rounding=rounding_of_losses,
)

# In float32: what counts are differences of neighbours, and values that are known up to a shift may lie anywhere. At
# 2.5 with a spread of 0.06, weights made of float16 values are off by up to 0.06, at 10 by 0.2.
VALUES = ScoreKind(
    name="values",
    prefix="value",
    owner="value model",
    plural="values",
    one="value",
    unit="",
    dtype=np.dtype("<f4"),
    magic=b"hptval01",
    suffix=".values",
    positions=valued_positions,
    rounding=rounding_of_values,
)

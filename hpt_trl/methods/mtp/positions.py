"""Which positions predict which tokens: head k at position t predicts token t + k, if both are of one document."""

from collections.abc import Mapping
from typing import Any, cast

from datasets import Dataset
from jaxtyping import Bool, Shaped
from torch import Tensor
from torch.nn.functional import pad


def predicted(batch: Mapping[str, Any], ahead: int) -> Bool[Tensor, "rows tokens-ahead"]:
    """Whether the head of a number predicts the token that lies so many ahead, for the positions that have one.

    Args:
        batch: `labels`, and where the batch has them `position_ids`, by which the documents of a packed row are told
            apart, and `attention_mask`, by which padding before a row is.
        ahead: number of the head, 1 for the next token.
    """
    valid = batch["labels"][:, ahead:] != -100
    # The next token is left to the labels, as SFT has it: the first token of a document has none.
    if ahead > 1:
        if (places := batch.get("position_ids")) is not None:
            valid = valid & (places[:, ahead:] == places[:, :-ahead] + ahead)
        if (mask := batch.get("attention_mask")) is not None:
            valid = valid & (mask[:, :-ahead] != 0)
    return valid


def longest_row(rows: Dataset, *, enough: int) -> int:
    """Tokens of the longest prepared row, or of the first rows among which one has `enough`."""
    longest = 0
    for batch in rows.select_columns("input_ids").iter(batch_size=100):
        longest = max(longest, *map(len, cast(dict[str, Any], batch)["input_ids"]))
        if longest >= enough:
            break
    return longest


def by_target(
    values: Shaped[Tensor, " positions"], valid: Bool[Tensor, "rows tokens-ahead"], tokens: int
) -> Shaped[Tensor, "rows tokens"]:
    """Values of one head's positions, at the places of the tokens that these predict; 0 elsewhere.

    Args:
        values: one for each position of `valid`, in its order.
        valid: of `predicted`.
        tokens: length of the rows.
    """
    return pad(by_position(values, valid, valid.shape[1]), (tokens - valid.shape[1], 0))


def by_position(
    values: Shaped[Tensor, " positions"], valid: Bool[Tensor, "rows tokens-ahead"], width: int
) -> Shaped[Tensor, "rows width"]:
    """Values of one head's positions, at their own places; 0 elsewhere.

    Args:
        values: one for each position of `valid`, in its order.
        valid: of `predicted`.
        width: how many positions the rows are to have.
    """
    placed = values.new_zeros(valid.shape)
    placed[valid] = values
    return pad(placed, (0, width - valid.shape[1]))

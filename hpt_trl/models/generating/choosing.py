"""Tokens drawn for the rows that go on, by the random numbers that they would have had beside all the others."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def draw_tokens(
    probabilities: Float[Tensor, "rows vocabulary"], rows: Int[Tensor, " rows"], batch: int
) -> Int[Tensor, " rows"]:
    """A token of each row, those that `torch.multinomial` would draw if no row had left the batch.

    Rows that have left take their share of the random numbers with them, so that completions do not depend on which
    others of the batch have ended. The draw is that of `multinomial`: the largest of p / e, e exponential, is token i
    with probability p_i.

    Args:
        probabilities: of the rows that go on.
        rows: their places in the batch.
        batch: rows of the batch, those that have left included.

    Raises:
        RuntimeError: a probability is NaN.
    """
    vocabulary = probabilities.shape[1]
    if probabilities.device.type != "cpu":
        # Rows that have left are sure of the first token, which nobody reads.
        of_all = probabilities.new_zeros(batch, vocabulary)
        of_all[:, 0] = 1
        of_all[rows] = probabilities
        return torch.multinomial(of_all, 1).squeeze(1)[rows]
    places = {row: place for place, row in enumerate(rows.tolist())}
    tokens = torch.empty_like(rows)
    uniform = torch.empty(vocabulary, dtype=torch.float64)
    for row in range(batch):
        uniform.uniform_()
        if (place := places.get(row)) is None:
            continue
        # What torch's `exponential_` makes of the same numbers, one after the other: a CPU takes five times as long.
        exponential = torch.log1p(-uniform).neg_().to(probabilities.dtype)
        best, token = (probabilities[place] / exponential).max(dim=0)
        if best.isnan():
            raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")
        tokens[place] = token
    return tokens

"""Rho-1's selection for several future heads: the losses of one target token under each of them.

Head k predicts the token k places ahead. All is laid out by target token, so that one reference loss of a token serves
every head; see `hpt_trl.token_scores.selection` for the selection itself.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hpt_trl.token_scores.selection import select_top

FIRST_HEADS = ("full", "selected")


def select_for_heads(
    nll: Float[Tensor, "heads rows tokens"],
    reference: Float[Tensor, "rows tokens"],
    valid: Bool[Tensor, "heads rows tokens"],
    groups: Int[Tensor, "rows tokens"],
    ratio: float,
    *,
    first_head: str = "full",
    anchored: bool = False,
) -> Float[Tensor, "heads rows tokens"]:
    """Weights of each head's target tokens: n / s on the s selected ones of a group's n, 0 on the others.

    Selected is the share `ratio` of the tokens, those with the highest excess nll - reference. The weights of a group
    add up to the number of its valid tokens, as uniform weights do.

    Args:
        nll: -log p of each target token under each head, by target token.
        reference: the next-token loss of each target token under the reference.
        valid: which heads predict a token; the last heads do not reach a sequence's first tokens.
        groups: number of the group that a token is ranked in, from 0.
        first_head: `full`: head 1 is trained on all tokens, so that next-token prediction stays what it is; `selected`:
            it has its own selection as well.
        anchored: the tokens that head 1 would select are taken for all heads, instead of a selection for each.

    Raises:
        ValueError: another `first_head`.
    """
    if first_head not in FIRST_HEADS:
        raise ValueError(f"`first_head` is {first_head!r}; allowed: {', '.join(FIRST_HEADS)}.")
    anchor = select_top(nll[0] - reference, valid[0], groups, ratio).weights > 0 if anchored else None
    weights = []
    for head in range(len(nll)):
        if head == 0 and first_head == "full":
            weights.append(valid[0].float())
        elif anchor is None:
            weights.append(select_top(nll[head] - reference, valid[head], groups, ratio).weights)
        else:
            weights.append(_only(anchor & valid[head], valid[head], groups))
    return torch.stack(weights)


def _only(
    chosen: Bool[Tensor, "rows tokens"], valid: Bool[Tensor, "rows tokens"], groups: Int[Tensor, "rows tokens"]
) -> Float[Tensor, "rows tokens"]:
    """n / s on the s chosen tokens of each group of n valid ones; a group of which none is chosen has no weight."""
    group = groups.flatten()
    empty = torch.zeros(int(group.max()) + 1 if group.numel() else 0, dtype=torch.float64, device=group.device)
    count, taken = (empty.scatter_add(0, group, mask.flatten().double()) for mask in (valid, chosen))
    scale = (count / taken.clamp(min=1))[group].view(valid.shape)
    return torch.where(chosen, scale, 0.0).float()

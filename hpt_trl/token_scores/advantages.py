"""What a token changed: temporal differences of values, advantages and returns, as pure functions of tensors.

V_t is the value after token t. A token is valid where it has a label; what is no valid token (a prompt, a tool's
output, padding) is crossed in one step, and nothing crosses the border of a document in a packed row.

Sources: TD errors and GAE, Schulman et al., arXiv 1506.02438, section 3 and eq. 16, here with the values of tokens
instead of states; lambda-returns, Sutton and Barto, Reinforcement Learning (2018), eq. 12.3.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TERMINALS = ("value", "reward")

PerToken = Float[Tensor, "rows tokens"]
Mask = Bool[Tensor, "rows tokens"]


def reverse_scan(terms: PerToken, factors: PerToken) -> PerToken:
    """y_t = terms_t + factors_t * y_{t+1}, with y = 0 behind the last place; in about log2(tokens) passes.

    Each pass doubles the stretch over which a place has been summed up (Hillis and Steele, 1986).
    """
    step, tokens = 1, terms.size(-1)
    while step < tokens:
        ahead = torch.nn.functional.pad(terms[..., step:], (0, step))
        terms = terms + factors * ahead
        factors = factors * torch.nn.functional.pad(factors[..., step:], (0, step))
        step *= 2
    return terms


def document_starts(like: Tensor, position_ids: Tensor | None) -> Mask:
    """Where a row begins, and in a padding-free row each of its documents. A document's first token is never valid.

    Args:
        like: any tensor of the shape (rows, tokens).
        position_ids: of a padding-free batch, (1, tokens); None where each row is one sequence.
    """
    starts = torch.zeros(like.shape, dtype=torch.bool, device=like.device)
    starts[:, 0] = True
    return starts if position_ids is None else starts | (position_ids == 0)


def td_errors(
    values: PerToken,
    valid: Mask,
    starts: Mask,
    *,
    gamma: float = 1.0,
    terminal: str = "value",
    first_baseline: float | None = None,
    reward: float = 1.0,
) -> PerToken:
    """delta_t = gamma V_t - V_{t-1} of each valid token, 0 elsewhere.

    Args:
        values: V_t of the valid tokens and of those before them.
        starts: see `document_starts`.
        terminal: `value`: the last token has the same difference; `reward`: delta_T = R - V_T in its stead.
        first_baseline: what stands for V_{t-1} at a document's first valid token; None for the value of the token
            before it, the prompt's last.
        reward: R.
    """
    before = torch.nn.functional.pad(values[:, :-1], (1, 0))
    if first_baseline is not None:
        before = torch.where(_first(valid, starts), first_baseline, before)
    errors = gamma * values - before
    if terminal == "reward":
        errors = torch.where(_last(valid, starts), reward - values, errors)
    return torch.where(valid, errors, 0.0)


def advantages(errors: PerToken, valid: Mask, starts: Mask, *, gamma: float = 1.0, lam: float = 0.95) -> PerToken:
    """A_t = delta_t + gamma lam A_{t+1} over the valid tokens of each document, 0 elsewhere.

    Args:
        errors: of `td_errors`.
    """
    factors = torch.where(valid, errors.new_tensor(gamma * lam), 1.0)
    factors = torch.where(_ends(starts), 0.0, factors)
    return torch.where(valid, reverse_scan(errors, factors), 0.0)


def lambda_returns(
    values: PerToken, valid: Mask, rewards: Float[Tensor, " rows"], *, gamma: float = 1.0, lam: float = 0.95
) -> PerToken:
    """G_T = R and G_t = (1 - lam) gamma V_{t+1} + lam gamma G_{t+1} over the valid tokens of each row, 0 elsewhere.

    Args:
        values: V_t; no gradient goes through them.
        rewards: R of each row, one sequence.
    """
    values = values.detach()
    last = _last(valid, document_starts(valid, None))
    # Of each place the next valid token's value.
    ahead = reverse_scan(torch.where(valid, values, 0.0), (~valid).to(values.dtype))
    ahead = torch.nn.functional.pad(ahead[:, 1:], (0, 1))
    terms = torch.where(
        last, rewards.to(values.dtype).unsqueeze(-1), torch.where(valid, (1 - lam) * gamma * ahead, 0.0)
    )
    factors = torch.where(last, 0.0, torch.where(valid, values.new_tensor(lam * gamma), 1.0))
    return torch.where(valid, reverse_scan(terms, factors), 0.0)


def _ends(starts: Mask) -> Mask:
    """Where a document ends: what is summed up from the right is not carried over."""
    return torch.nn.functional.pad(starts[:, 1:], (0, 1), value=True)


def _first(valid: Mask, starts: Mask) -> Mask:
    """The first valid token of each document."""
    count = valid.cumsum(-1)
    earlier = torch.where(starts, count - valid.long(), 0).cummax(-1).values
    return valid & (count - earlier == 1)


def _last(valid: Mask, starts: Mask) -> Mask:
    """The last valid token of each document."""
    return _first(valid.flip(-1), _ends(starts).flip(-1)).flip(-1)

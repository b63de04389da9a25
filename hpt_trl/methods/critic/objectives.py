"""What a critic is trained for, and what is to be known of its values: pure functions of tensors."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from hpt_trl.token_scores.advantages import lambda_returns

PerToken = Float[Tensor, "rows tokens"]
Mask = Bool[Tensor, "rows tokens"]


def lambda_at(step: int, *, start: float, end: float, schedule: str, hold_steps: int, decay_steps: int) -> float:
    """lambda of the returns at an optimizer step: held, then on its way to the last one.

    Args:
        step: optimizer steps done so far.
        schedule: `constant` (the last one throughout), `linear` or `cosine`.
    """
    if schedule == "constant" or step >= hold_steps + decay_steps:
        return end
    done = max(step - hold_steps, 0) / max(decay_steps, 1)
    if schedule == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return start + (end - start) * done


def regression_loss(
    values: PerToken,
    mask: Mask,
    rewards: Float[Tensor, " rows"],
    *,
    gamma: float,
    lam: float,
    loss: str,
    beta: float,
) -> Float[Tensor, ""]:
    """Distance of the values from their lambda-returns, the mean of each sequence's tokens, then over the sequences.

    Args:
        mask: the tokens of each output.
        rewards: outcomes, 1 or 0.
        loss: `smooth_l1` (quadratic up to `beta`) or `mse`.
    """
    targets = lambda_returns(values, mask, rewards, gamma=gamma, lam=lam)
    if loss == "mse":
        each = (values - targets).square()
    else:
        each = smooth_l1_loss(values, targets, beta=beta, reduction="none")
    weight = mask.to(each.dtype)
    return ((each * weight).sum(-1) / weight.sum(-1).clamp(min=1)).mean()


def diagnostics(values: PerToken, mask: Mask) -> dict[str, Float[Tensor, " rows"]]:
    """What the values do inside of each output.

    `variance` of the values; `spikiness`, the largest change from one token to the next over the mean one (above 3
    where single tokens decide, 1 where all change alike); `position_correlation`, Pearson's of value and position
    (above 0.7 the value may be the length alone). Each is 0 where nothing varies.

    Args:
        mask: the tokens of each output, without a gap.
    """
    values = values.detach().double() * mask
    count = mask.sum(-1).clamp(min=1).double()
    place = mask.cumsum(-1).double() * mask
    mean, middle = values.sum(-1) / count, place.sum(-1) / count
    centred = (values - mean[:, None]) * mask
    ahead = (place - middle[:, None]) * mask
    variance, spread = centred.square().sum(-1) / count, ahead.square().sum(-1) / count
    covariance = (centred * ahead).sum(-1) / count
    steps = mask[:, 1:] & mask[:, :-1]
    change = (values[:, 1:] - values[:, :-1]).abs() * steps
    average = change.sum(-1) / steps.sum(-1).clamp(min=1)
    largest = change.amax(-1) if change.size(-1) else torch.zeros_like(mean)

    def ratio(one: Tensor, other: Tensor) -> Tensor:
        # What rounding leaves of a constant is no spread.
        return torch.where(other > 1e-12, one / other.clamp(min=1e-12), 0.0)

    return {
        "variance": variance,
        "spikiness": ratio(largest, average),
        "position_correlation": ratio(covariance, (variance * spread).sqrt()),
    }

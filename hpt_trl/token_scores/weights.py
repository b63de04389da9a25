"""Weights of tokens: from advantages, and the controls that they are compared with; pure functions of tensors.

Every weight is that of a target token. Masked tokens have the weight 0.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hpt_trl.token_scores.selection import random_scores

PerToken = Float[Tensor, "rows tokens"]
Mask = Bool[Tensor, "rows tokens"]
Groups = Int[Tensor, "rows tokens"]


def exponential_weights(
    advantages: PerToken,
    valid: Mask,
    *,
    mean: float,
    std: float,
    temperature: float = 1.0,
    low: float = 0.1,
    high: float = 3.0,
) -> tuple[PerToken, Mask]:
    """w = clip(exp((A - mean) / (std + 1e-8) / temperature), low, high) (advantage-weighted regression, 1910.00177).

    Returns:
        The weights, and which of them were clipped.
    """
    # Large ones overflow to infinity, which the clip takes in.
    plain = ((advantages - mean) / (std + 1e-8) / temperature).exp()
    weights = torch.where(valid, plain.clamp(low, high), 0.0)
    return weights, valid & ((plain < low) | (plain > high))


def shuffled(
    weights: PerToken, valid: Mask, input_ids: Int[Tensor, "rows tokens"], groups: Groups, *, seed: int, step: int
) -> PerToken:
    """The weights of each group in another order, drawn from its tokens, the seed and the step.

    Args:
        groups: number of each token's group, from 0.
    """
    drawn = _drawn(valid, input_ids, groups, seed=seed, step=step)[valid]
    group = groups[valid]
    # By group, in the order of the tokens and in that of what was drawn: both sorts keep the order of equals.
    in_order = group.argsort(stable=True)
    mixed_order = drawn.argsort(stable=True)
    mixed_order = mixed_order[group[mixed_order].argsort(stable=True)]
    mixed = torch.empty_like(weights[valid])
    mixed[in_order] = weights[valid][mixed_order]
    return torch.zeros_like(weights).masked_scatter(valid, mixed)


def matched_normal(mean: float, std: float, *, low: float, high: float) -> tuple[float, float]:
    """Mean and spread of x such that clip(exp(x), low, high) of a normal x has the given mean and spread.

    Raises:
        ValueError: no such distribution: the mean is outside of the clip, or the spread is too large for it.
    """
    widest = math.sqrt(max((mean - low) * (high - mean), 0.0))
    if not (low < mean < high and 0 <= std < widest):
        raise ValueError(
            f"no weights between {low:g} and {high:g} have the mean {mean:.3g} and the spread {std:.3g}; allowed: a "
            f"mean between the two, and a spread below {widest:.3g} for this mean."
        )

    def centre(sigma: float) -> float:
        """The mean of x that gives the mean of the weights."""
        least, most = math.log(low) - 40 * sigma - 1, math.log(high) + 40 * sigma + 1
        for _ in range(200):
            middle = (least + most) / 2
            least, most = (middle, most) if _moments(middle, sigma, low, high)[0] < mean else (least, middle)
        return (least + most) / 2

    narrow, wide = 0.0, 1.0
    while wide < 1e3 and _moments(centre(wide), wide, low, high)[1] < std:
        wide *= 2
    for _ in range(60):
        middle = (narrow + wide) / 2
        narrow, wide = (middle, wide) if _moments(centre(middle), middle, low, high)[1] < std else (narrow, middle)
    sigma = (narrow + wide) / 2
    return centre(sigma), sigma


def _moments(mu: float, sigma: float, low: float, high: float) -> tuple[float, float]:
    """Mean and spread of clip(exp(x), low, high) for a normal x, in closed form."""
    if sigma == 0:
        return min(max(math.exp(mu), low), high), 0.0
    below, above = (math.log(low) - mu) / sigma, (math.log(high) - mu) / sigma

    def partial(power: int) -> float:
        """The part of the moment that is not clipped: E[exp(power x); low < exp(x) < high]."""
        shift = power * sigma
        inside = _normal(above - shift) - _normal(below - shift)
        # The factor overflows where nothing is inside.
        return math.exp(power * mu + shift**2 / 2) * inside if inside > 0 else 0.0

    ends = [(low, _normal(below)), (high, _normal(-above))]
    first = partial(1) + sum(value * share for value, share in ends)
    second = partial(2) + sum(value**2 * share for value, share in ends)
    return first, math.sqrt(max(second - first**2, 0.0))


def _normal(x: float) -> float:
    """The distribution function of the standard normal."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def random_weights(
    valid: Mask,
    input_ids: Int[Tensor, "rows tokens"],
    groups: Groups,
    *,
    centre: float,
    spread: float,
    low: float,
    high: float,
    seed: int,
    step: int,
) -> PerToken:
    """clip(exp(x), low, high) of normal x that are drawn from each sequence's tokens, the seed and the step.

    Args:
        groups: number of each token's sequence, from 0.
        centre, spread: of x; `matched_normal` finds those of a mean and a spread after the clip.
    """
    uniform = _drawn(valid, input_ids, groups, seed=seed, step=step)
    # 0 would be drawn once in 2^53 times.
    normal = torch.special.ndtri(uniform.clamp(2**-54, 1 - 2**-53))
    return torch.where(valid, (centre + spread * normal).exp().clamp(low, high), 0.0).float()


def _drawn(
    valid: Mask, input_ids: Int[Tensor, "rows tokens"], groups: Groups, *, seed: int, step: int
) -> Float[Tensor, "rows tokens"]:
    """A number in [0, 1) for each valid token, the same wherever its sequence lies; 0.5 elsewhere."""
    drawn = torch.full(valid.shape, 0.5, dtype=torch.float64, device=valid.device)
    found = random_scores(input_ids, valid[:, 1:], groups[:, 1:], seed=seed, step=step)
    drawn[:, 1:] = torch.where(valid[:, 1:], found, 0.5)
    return drawn


def relative_bins(valid: Mask, groups: Groups, bins: int) -> Int[Tensor, "rows tokens"]:
    """Which of equally wide parts of its sequence each valid token lies in, 0 to bins - 1; 0 elsewhere.

    Args:
        groups: number of each token's sequence, from 0.
    """
    group = groups[valid]
    count = torch.zeros(int(group.max()) + 1 if group.numel() else 0, dtype=torch.long, device=valid.device)
    sizes = count.scatter_add(0, group, torch.ones_like(group))
    order = group.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(group)
    rank[order] = torch.arange(group.numel(), device=valid.device) - starts[group[order]]
    found = rank * bins // sizes[group]
    return torch.zeros(valid.shape, dtype=torch.long, device=valid.device).masked_scatter(valid, found)

"""The arithmetic of PPO as pure functions of tensors, in float32.

Equations: GAE, arXiv 1506.02438 (16); clipped surrogate, arXiv 1707.06347 (7), which is the base's; token rewards and
the adaptive KL controller, arXiv 1909.08593 (2) and section 2.2; clipped value loss, arXiv 2005.12729, section 3;
lambda by length, arXiv 2504.05118.

`mask` is 1 on the policy's own tokens. Tokens between them (the output of a tool) are crossed in one step: they earn
nothing, cost no discount and get no advantage.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

PerToken = Float[Tensor, "rows tokens"]


def token_rewards(
    logps: PerToken, ref_logps: PerToken | None, mask: PerToken, scores: Float[Tensor, " rows"], kl_coef: float
) -> PerToken:
    """-kl_coef * (log pi - log pi_ref) on each own token, plus the score on the last one (the EOS of a whole one).

    Args:
        logps, ref_logps: log-probabilities of the tokens under policy and reference, in nats; None: no KL term.
        scores: one per completion; lost where a row has no own token.
    """
    rewards = torch.zeros_like(mask) if ref_logps is None else -kl_coef * (logps - ref_logps) * mask
    positions = torch.arange(mask.size(1), device=mask.device)
    last = torch.where(mask > 0, positions, -1).amax(dim=1, keepdim=True)
    return rewards + torch.where(positions == last, scores.unsqueeze(1), 0.0)


def generalized_advantages(
    rewards: PerToken,
    values: PerToken,
    mask: PerToken,
    gamma: float,
    lam: "float | Float[Tensor, ' rows']",
) -> tuple[PerToken, PerToken]:
    """Advantages A_t = sum_l (gamma lam)^l delta_{t+l} and returns A_t + V_t, both 0 where the mask is.

    A completion is an episode: after its last own token the value is 0, also where it was cut at the length limit.

    Args:
        lam: of all rows, or one of each.
    """
    rewards, values = rewards.float(), values.float()
    advantages = torch.zeros_like(rewards)
    next_value = rewards.new_zeros(len(rewards))
    running = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.size(1))):
        own = mask[:, t] > 0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(own, delta + gamma * lam * running, running)
        next_value = torch.where(own, values[:, t], next_value)
        advantages[:, t] = torch.where(own, running, 0.0)
    return advantages, torch.where(mask > 0, advantages + values, 0.0)


def advantages_and_returns(
    rewards: PerToken,
    values: PerToken,
    mask: PerToken,
    gamma: float,
    lam: float,
    critic_lam: float | None = None,
    length_adaptive_alpha: float | None = None,
) -> tuple[PerToken, PerToken]:
    """Advantages, and the returns that the critic learns, each with its own lambda (arXiv 2503.01491, 2504.05118).

    Args:
        critic_lam: of the returns; None: `lam`.
        length_adaptive_alpha: the advantages' lambda is that of `length_adaptive_lam`; None: `lam`.
    """
    of_critic = lam if critic_lam is None else critic_lam
    advantages, returns = generalized_advantages(rewards, values, mask, gamma, of_critic)
    if length_adaptive_alpha is not None:
        adapted = length_adaptive_lam(mask, length_adaptive_alpha)
        advantages, _ = generalized_advantages(rewards, values, mask, gamma, adapted)
    elif of_critic != lam:
        advantages, _ = generalized_advantages(rewards, values, mask, gamma, lam)
    return advantages, returns


def length_adaptive_lam(mask: PerToken, alpha: float) -> Float[Tensor, " rows"]:
    """lambda = 1 - 1 / (alpha l) of each completion of l own tokens, so that sum_t lambda^t is alpha l (2504.05118).

    0 where that is negative, of completions of less than 1 / alpha tokens.
    """
    return (1.0 - 1.0 / (alpha * mask.sum(1).clamp(min=1))).clamp(min=0.0)


def mean_error(
    values: PerToken, returns: PerToken, mask: PerToken, all_sum: Callable[[Tensor], Tensor]
) -> Float[Tensor, ""]:
    """Mean of returns - values over the masked tokens of all processes: what a critic is biased by."""
    total, count = all_sum(torch.stack([((returns - values) * mask).sum(), mask.sum()])).unbind()
    return total / count.clamp(min=1)


def whiten(values: PerToken, mask: PerToken, all_sum: Callable[[Tensor], Tensor]) -> PerToken:
    """Values with mean 0 and variance 1 (unbiased) over the masked tokens of all processes; 0 elsewhere.

    Args:
        all_sum: adds a tensor up over all processes.
    """
    total, count = all_sum(torch.stack([(values * mask).sum(), mask.sum()])).unbind()
    centred = (values - total / count.clamp(min=1)) * mask
    variance = all_sum(centred.square().sum()) / (count - 1).clamp(min=1)
    return centred * torch.rsqrt(variance + 1e-8)


def value_loss(
    values: PerToken, old_values: PerToken, returns: PerToken, cliprange: float | None
) -> tuple[PerToken, PerToken]:
    """Half the squared error of each value, or that of the value clipped to `cliprange` around the rollout's if larger.

    Returns:
        The loss of each token, and 1.0 where the clipped one is taken.
    """
    plain = (values - returns).square()
    if cliprange is None:
        return 0.5 * plain, torch.zeros_like(plain)
    clipped = (old_values + (values - old_values).clamp(-cliprange, cliprange) - returns).square()
    return 0.5 * torch.maximum(plain, clipped), (clipped > plain).float()


def normalized_scores(
    scores: Float[Tensor, " completions"],
    group: int,
    centering: str = "none",
    scaling: str = "none",
    clip: float | None = None,
) -> Float[Tensor, " completions"]:
    """Scores centred and scaled over the completions of their prompt or over the batch; NaN stays out and stays NaN.

    Centring per prompt takes away the arbitrary shift that a reward model trained on differences has for each prompt.

    Args:
        scores: of all processes, the completions of a prompt together.
        group: completions per prompt.
        centering, scaling: `none`, `prompt` or `batch`.
    """

    def moments(kind: str) -> tuple[Tensor, Tensor]:
        grouped = scores.view(-1, group if kind == "prompt" else len(scores))
        mean = grouped.nanmean(dim=1, keepdim=True)
        count = (~grouped.isnan()).sum(dim=1, keepdim=True)
        variance = (grouped - mean).square().nansum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
        return mean.expand_as(grouped).reshape(-1), variance.sqrt().expand_as(grouped).reshape(-1)

    normalized = scores if centering == "none" else scores - moments(centering)[0]
    if scaling != "none":
        normalized = normalized / (moments(scaling)[1] + 1e-4)
    return normalized if clip is None else normalized.clamp(-clip, clip)


def explained_variance(
    values: PerToken, returns: PerToken, mask: PerToken, all_sum: Callable[[Tensor], Tensor]
) -> float:
    """1 - Var(returns - values) / Var(returns) over the masked tokens of all processes: 1 is a perfect critic.

    NaN where there are none.
    """
    error = returns - values
    sums = torch.stack([(x * mask).sum() for x in (mask, returns, returns.square(), error, error.square())])
    n, total, squares, errors, squared_errors = all_sum(sums).tolist()
    if n == 0:
        return math.nan
    spread = squares - total**2 / n
    return 1.0 - (squared_errors - errors**2 / n) / spread if spread > 1e-12 else 0.0


class KLController:
    """Coefficient of the KL term: fixed, or steered towards a target (arXiv 1909.08593, section 2.2)."""

    def __init__(self, coefficient: float, *, adaptive: bool, target: float, horizon: float):
        self.coefficient = coefficient
        self.adaptive, self.target, self.horizon = adaptive, target, horizon

    def update(self, kl: float, completions: int) -> None:
        """Multiply the coefficient by 1 + clip(kl / target - 1, -0.2, 0.2) * completions / horizon.

        Args:
            kl: mean KL of a completion to the reference, summed over its tokens, in nats.
            completions: that it was measured on.
        """
        if self.adaptive:
            error = min(max(kl / self.target - 1.0, -0.2), 0.2)
            self.coefficient *= 1.0 + error * completions / self.horizon

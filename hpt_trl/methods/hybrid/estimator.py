"""The unified policy-gradient estimator of HPT (arXiv 2509.04419, section 2) as pure functions of tensors.

Every method of the family has the gradient `1_stable * (1 / pi_ref) * A * grad pi_theta`. Written as a per-token loss
that is `-mask * A * w(log p)`, where `w` decides what multiplies `grad log pi_theta`:

    theta    w = log p            ->  1                      pi_ref = pi_theta: SFT, REINFORCE, SRFT's rollouts
    old      w = p / p_old        ->  p / p_old              pi_ref = pi_old: PPO, GRPO
    one      w = p                ->  p                      pi_ref = 1
    p_div_p  w = p / (p + gamma)  ->  p gamma / (p+gamma)^2  pi_ref = 1, shaped: LUFFY (arXiv 2504.14945)

The rollouts of GRPO-type methods go through TRL's own loss (`old`, clipped); the functions here serve the
demonstrations and SRFT's rollouts, and the tests compare all of them with float64 references.
"""

import torch
from jaxtyping import Float
from torch import Tensor

RESHAPES = ("p_div_p", "no_reshape", "logp", "p_logp", "square_root", "pow")


def shaped_weight(
    logps: Float[Tensor, "rows tokens"], reshape: str = "p_div_p", gamma: float = 0.1
) -> Float[Tensor, "rows tokens"]:
    """Shaped importance weight f(p) of a demonstration token, whose behaviour policy is taken to be 1.

    Args:
        logps: Log-probability of each token under the policy, in nats.
        reshape: `p_div_p` p/(p+gamma) | `no_reshape` p | `logp` log p | `p_logp` p + gamma log p |
            `square_root` p^0.5 | `pow` p^gamma.
        gamma: The gamma of `p_div_p`, the exponent of `pow`, the weight of log p in `p_logp`.

    Raises:
        ValueError: `reshape` is none of the above.
    """
    if reshape == "p_div_p":
        # sigmoid(log p - log gamma) = p / (p + gamma), without leaving the log domain.
        return torch.sigmoid(logps - torch.log(logps.new_tensor(gamma)))
    if reshape == "no_reshape":
        return logps.exp()
    if reshape == "logp":
        return logps
    if reshape == "p_logp":
        return logps.exp() + gamma * logps
    if reshape == "square_root":
        return (0.5 * logps).exp()
    if reshape == "pow":
        return (gamma * logps).exp()
    raise ValueError(f"`off_policy_reshape` is {reshape!r}; allowed: {', '.join(RESHAPES)}.")


def policy_gradient_loss(
    weight: Float[Tensor, "rows tokens"],
    advantages: Float[Tensor, " rows"],
    mask: Float[Tensor, "rows tokens"],
) -> Float[Tensor, "rows tokens"]:
    """Per-token loss `-mask * A * w` of the unified estimator (module docstring)."""
    return -mask * advantages.unsqueeze(1) * weight


def masked_mean(values: Float[Tensor, "rows tokens"], mask: Float[Tensor, "rows tokens"]) -> Float[Tensor, " rows"]:
    """Mean of each row over its unmasked tokens; 0 for a row without any."""
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def chord_token_weight(logps: Float[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens"]:
    """CHORD's phi = p (1 - p), no gradient: neither mastered nor hopeless tokens (arXiv 2508.11408)."""
    p = logps.detach().exp()
    return p * (1 - p)


def chord_mu(step: int, start: float, final: float, decay_steps: int) -> float:
    """CHORD's weight of the SFT term at an optimizer step: linear from `start` to `final`, then constant."""
    progress = min(step / decay_steps, 1.0)
    return start + (final - start) * progress


def srft_sft_weight(entropy: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """SRFT's weight 0.5 exp(-H) of a demonstration's cross-entropy; H is its mean entropy (arXiv 2506.19767)."""
    return 0.5 * torch.exp(-entropy.detach())


def srft_rollout_advantages(entropy: Float[Tensor, " rows"], solved: Tensor) -> Float[Tensor, " rows"]:
    """SRFT's advantage of a rollout: 0.1 exp(H) if solved, else -1; H is its mean entropy (arXiv 2506.19767)."""
    return torch.where(solved, 0.1 * torch.exp(entropy.detach()), -torch.ones_like(entropy))


def union_advantages(
    rewards: Float[Tensor, "prompts group"], demonstration_rewards: Float[Tensor, " prompts"], scale: str
) -> tuple[Float[Tensor, "prompts group"], Float[Tensor, " prompts"]]:
    """Advantages over the union of each prompt's rollouts and its demonstration (LUFFY, arXiv 2504.14945).

    Args:
        rewards: Weighted reward of every rollout; NaN where a rollout could not be scored.
        demonstration_rewards: The same of every prompt's demonstration.
        scale: `group` divides by the union's standard deviation, `batch` by that of all unions together, `none`
            only subtracts the mean; as `scale_rewards` of `trl.GRPOConfig`.

    Returns:
        Advantages of the rollouts and of the demonstrations; 0 where the reward is NaN.
    """
    union = torch.cat([rewards, demonstration_rewards.unsqueeze(1)], dim=1)
    scored = ~union.isnan()
    count = scored.sum(1, keepdim=True)
    centred = union - torch.nanmean(union, dim=1, keepdim=True)
    squares = torch.where(scored, centred, 0.0).square()
    if scale == "group":
        centred = centred / ((squares.sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt() + 1e-4)
    elif scale == "batch":
        values = union[scored]
        centred = centred / (values.std() + 1e-4)
    centred = torch.nan_to_num(centred, nan=0.0)
    return centred[:, :-1], centred[:, -1]

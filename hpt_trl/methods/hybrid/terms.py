"""Loss terms beside the stock loss of the rollouts: demonstrations, and SRFT's rollouts."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hpt_trl.methods.hybrid import estimator
from hpt_trl.methods.hybrid.config import HybridPostConfig
from hpt_trl.methods.hybrid.routing import MicroBatch

# Loss types of TRL that average over the rows of a micro-batch; the others divide by a number of tokens.
ROW_NORMALIZED = ("grpo", "sapo", "dr_grpo", "luspo")


@dataclass
class Scores:
    """Log-probability of each completion token and entropy of its distribution, in nats."""

    logps: Float[Tensor, "rows tokens"]
    entropies: Float[Tensor, "rows tokens"]


def demonstration_terms(
    scores: Scores, micro: MicroBatch, config: HybridPostConfig, processes: int
) -> dict[str, Tensor]:
    """Loss terms of a micro-batch's demonstrations.

    Gradients are averaged over the processes while the denominators are global, hence the factor `processes`.

    Returns:
        `sft` and `off` (scalars, where a demonstration has such a term) and `nll`, the sum of the negative
        log-likelihoods without gradient.
    """
    logps, mask = scores.logps, micro.demonstration_mask
    terms = {"nll": -(logps.detach() * mask).sum()}
    if micro.has_sft:
        nll, row_weight = -logps * mask, micro.sft_coefficients
        if config.offline_loss_type == "srft":
            row_weight = row_weight * estimator.srft_sft_weight(estimator.masked_mean(scores.entropies, mask))
        elif config.offline_loss_type == "chord":
            nll = nll * estimator.chord_token_weight(logps)
        if config.sft_loss_normalization == "token":
            loss = (row_weight * nll.sum(1)).sum() / max(micro.sft_tokens, 1)
        else:
            loss = (row_weight * estimator.masked_mean(nll, mask)).sum() / micro.prompts_per_step
        terms["sft"] = loss * processes
    if micro.has_off_policy:
        weight = estimator.shaped_weight(logps, config.off_policy_reshape, config.off_policy_reshape_gamma)
        loss = estimator.policy_gradient_loss(weight, micro.off_advantages, mask)
        terms["off"] = _like_rollouts(loss, mask, micro, config) * processes
    return terms


def signed_rollouts(
    scores: Scores,
    mask: Float[Tensor, "rows tokens"],
    micro: MicroBatch,
    config: HybridPostConfig,
    processes: int,
) -> Tensor:
    """SRFT's loss of the rollouts, in place of the stock one, whose advantages are 0."""
    advantages = estimator.srft_rollout_advantages(estimator.masked_mean(scores.entropies, mask), micro.solved)
    loss = estimator.policy_gradient_loss(scores.logps, advantages * micro.signed, mask)
    return _like_rollouts(loss, mask, micro, config) * processes


def _like_rollouts(loss: Tensor, mask: Tensor, micro: MicroBatch, config: HybridPostConfig) -> Tensor:
    """Sum of a per-token loss over the global denominator that `loss_type` gives to the rollouts."""
    if config.loss_type in ("grpo", "sapo"):
        return estimator.masked_mean(loss, mask).sum() / micro.rows_per_step
    if config.loss_type == "dr_grpo" and config.max_completion_length:
        return loss.sum() / (micro.rows_per_step * config.max_completion_length)
    if config.loss_type == "luspo":
        return loss.sum() / micro.rows_per_step
    return loss.sum() / micro.tokens_per_step


def sum_of(loss: Tensor, terms: dict[str, Tensor]) -> Tensor:
    """The loss with the terms that carry a gradient."""
    return loss + sum(terms[name] for name in ("rl", "off", "sft") if name in terms)


def loggable(loss: Tensor, terms: dict[str, Tensor]) -> Tensor:
    """(4,) rollouts' loss, off-policy term, supervised term and summed NLL, without gradient."""
    zero = torch.zeros((), device=loss.device)
    parts = [loss + terms.get("rl", zero), *(terms.get(name, zero) for name in ("off", "sft", "nll"))]
    return torch.stack([part.detach().float() for part in parts])

"""The forward pass of all heads, inside the model's own `forward`, where DDP, FSDP and ZeRO have its weights ready.

TRL's fused forward runs the trunk, reads what the family does to its logits (softcap, scale, bias), gathers weights
that are spread, computes the balancing loss of experts, and calls a function for the output embeddings. Nothing of it
is copied: while it runs, that function is this module's, which computes the further heads from what went into the last
layer, and the losses of all heads in one call.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from hpt_trl.errors import UserError
from hpt_trl.methods.mtp.head import weighted_nll
from hpt_trl.methods.mtp.positions import by_position, by_target
from hpt_trl.models.fused_head import Compacted, in_place_of_stock
from hpt_trl.models.future_heads.trunk import LastLayer, parts_of, watched

# Largest relative difference of norm(last layer) from the model's last hidden state: another order of adding.
_ROUNDING = 1e-2
_MEASURES = ("log_probs", "entropy", "is_top1")


@dataclass
class Ahead:
    """What is asked of one forward pass of several heads.

    Attributes:
        valid: of each head, from the first: which positions predict, (B, T - k).
        labels: (B, T).
        coefficients: of each head: what each of its positions counts in the loss, in the order of `valid`. None where
            the losses alone are wanted.
        weigh: instead of weights that are known beforehand: of all heads' losses by target token (n, B, T), what each
            is multiplied by beside its coefficient, of the same shape. Logits are then formed twice.
        detach: heads 2 to n learn by themselves, without a gradient for the model.
        keep: the heads' activations are kept for the backward pass, not computed again.
    """

    valid: list[Tensor]
    labels: Tensor
    coefficients: list[Tensor] | None = None
    weigh: Callable[[Tensor], Tensor] | None = None
    detach: bool = False
    keep: bool = True


@dataclass
class AheadOutput(FusedCausalLMOutput):
    """Output of TRL's fused head, of head 1, and what all heads found.

    Attributes:
        log_probs: where a weighted sum of losses was asked for, that sum with the sign of log-probabilities, a scalar
            with a gradient; else those of head 1, (B, T - 1).
        head_losses: loss of head k at a position for the token k ahead, in nats; 0 where it has none. (B, T - 1, n).
        head_right: whether that token is the most likely one, (B, T - 1, n).
        head_valid: whether there is a token to predict, (B, T - 1, n).
    """

    head_losses: Tensor | None = None
    head_right: Tensor | None = None
    head_valid: Tensor | None = None


class ForwardAhead:
    """Lets a causal language model that has TRL's fused head run all its heads: `model(..., ahead=Ahead(...))`.

    Args:
        model: without a wrapper around it.
    """

    def __init__(self, model: Any):
        self._inner, self._checked = model.forward, False

        @wraps(type(model).forward)
        def forward(this: Any, *args: Any, ahead: Ahead | None = None, **kwargs: Any) -> Any:
            return self._inner(*args, **kwargs) if ahead is None else self._run(this, ahead, *args, **kwargs)

        model.forward = types.MethodType(forward, model)

    def _run(self, model: Any, ahead: Ahead, *args: Any, **kwargs: Any) -> AheadOutput:
        found: list[_Found] = []

        def apply(*given: Any) -> tuple[Tensor | None, ...]:
            found.append(self._heads(model, ahead, seen, kwargs["input_ids"], *given))
            return found[-1].of_first

        # Called as TRL calls its kernel.
        instead: Any = SimpleNamespace(apply=apply)
        with watched(parts_of(model).layer) as seen, in_place_of_stock(instead):
            outputs = self._inner(*args, **kwargs, fused_lm_head=True)
        (all_heads,) = found
        shown = [valid[valid] for valid in ahead.valid]
        measures = {"head_losses": all_heads.losses, "head_right": all_heads.right, "head_valid": shown}
        width = ahead.labels.shape[1] - 1
        values = dict(outputs) | {
            name: torch.stack([by_position(*one, width) for one in zip(parts, ahead.valid, strict=True)], -1)
            for name, parts in measures.items()
        }
        if all_heads.total is not None:
            values["log_probs"] = -all_heads.total
        return AheadOutput(**values)

    def _heads(
        self,
        model: Any,
        ahead: Ahead,
        seen: LastLayer,
        input_ids: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> "_Found":
        """What stands where TRL calls its kernel for head 1.

        Args:
            hidden: head 1's states: of the positions that predict alone, or on some devices of all but the last.
        """
        first = ahead.valid[0]
        # As many as there are positions: all of them were given.
        whole = len(hidden) == first.numel()
        self._check(model, seen, hidden, torch.ones_like(first) if whole else first)
        rows = [hidden[first.flatten()] if whole else hidden]
        if len(ahead.valid) > 1:
            count = len(ahead.valid)
            states = model.future_heads.states(
                model, seen, count=count, detach=ahead.detach, keep=ahead.keep, input_ids=input_ids
            )
            for state, valid in zip(states, ahead.valid[1:], strict=True):
                rows.append(state[:, : valid.shape[1]][valid].to(hidden))
        counts = [len(row) for row in rows]
        chosen = [ahead.labels[:, k:][valid] for k, valid in enumerate(ahead.valid, start=1)]
        given = (torch.cat(rows), weight, bias, torch.cat(chosen))
        head: Any = partial(weighted_nll, *given, entropies=counts[0], softcap=softcap, scale=scale)
        total = None
        if ahead.coefficients is None:
            with torch.no_grad():
                nothing = hidden.new_zeros(sum(counts), dtype=torch.float32)
                _, losses, right, entropy = head(nothing)
        elif ahead.weigh is None:
            reach = counts[0] if ahead.detach else None
            total, losses, right, entropy = head(torch.cat(ahead.coefficients), reach=reach)
        else:
            logp, entropy, right = _log_probs(*given, counts[0] if ahead.detach else None, chunk_size, softcap, scale)
            losses = -logp.detach()
            weights = ahead.weigh(_all_by_target(losses, ahead.valid, ahead.labels.shape[1]))
            mine = [weights[k - 1, :, k:][valid] for k, valid in enumerate(ahead.valid, start=1)]
            total = -(logp * torch.cat(ahead.coefficients) * torch.cat(mine)).sum()
        per_token = (-losses[: counts[0]], entropy[: counts[0]], None, None, right[: counts[0]])
        return _Found(
            total,
            losses.split(counts),
            right.split(counts),
            tuple(
                by_position(one, first, first.shape[1]).flatten() if whole and one is not None else one
                for one in per_token
            ),
        )

    def _check(self, model: Any, seen: LastLayer, hidden: Tensor, shown: Tensor) -> None:
        """See once that the parts that were found are those that the model is made of."""
        if self._checked or len(hidden) == 0:
            return
        with torch.no_grad():
            expected = parts_of(model).norm(seen.output)[:, : shown.shape[1]][shown].float()
            difference = (hidden.float() - expected).norm() / expected.norm().clamp(min=1e-12)
        if not difference <= _ROUNDING:
            raise UserError(
                f"model_name_or_path: heads for future tokens cannot be put on this {model.config.model_type} model: "
                "its last hidden state is not the norm of its last decoder layer's output."
            )
        self._checked = True


@dataclass
class _Found:
    """What the heads found: the weighted sum, each head's losses and hits in the order of its positions, and head 1's
    measures as TRL takes them from its kernel."""

    total: Tensor | None
    losses: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    of_first: tuple[Tensor | None, ...]


def _log_probs(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    reach: int | None,
    chunk_size: int,
    softcap: float | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities with a gradient, entropies and hits of all positions by TRL's kernel; see `weighted_nll`."""
    border = len(rows) if reach is None else reach
    parts = [(slice(0, border), weight, bias)]
    if border < len(rows):
        parts.append((slice(border, None), weight.detach(), None if bias is None else bias.detach()))
    found = [
        Compacted.apply(rows[part], matrix, added, targets[part], 1.0, chunk_size, softcap, scale, _MEASURES)
        for part, matrix, added in parts
    ]
    logp, entropy, right = (torch.cat([one[place] for one in found]) for place in (0, 1, 4))
    return logp, entropy.detach(), right


def _all_by_target(losses: Tensor, valid: list[Tensor], tokens: int) -> Tensor:
    """Losses of all heads at the places of the tokens that they are of, 0 elsewhere. Shape: (n, B, T)."""
    parts = losses.split([int(one.sum()) for one in valid])
    return torch.stack([by_target(part, one, tokens) for part, one in zip(parts, valid, strict=True)])

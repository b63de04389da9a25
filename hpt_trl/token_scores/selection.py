"""Which tokens are trained on by their scores, and with what weight: pure functions of tensors.

Source: Lin et al., "Rho-1: Not All Tokens Are What You Need", arXiv 2404.07965, eq. 3 to 5.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# A position that takes no part: it is ranked behind all others of its group.
_LAST = float("-inf")


def ratio_at(step: int, *, ratio: float, schedule: str, warmup_steps: int, max_steps: int) -> float:
    """The share of tokens that is trained on at an optimizer step.

    Args:
        step: optimizer steps done so far.
        ratio: the share at the end.
        schedule: `constant`, or `linear` or `cosine` from 1 after the warm-up to `ratio` at the last step.
        warmup_steps: steps on all tokens.
        max_steps: optimizer steps of the whole run.
    """
    if step < warmup_steps:
        return 1.0
    if schedule == "constant":
        return ratio
    done = min((step - warmup_steps) / max(max_steps - 1 - warmup_steps, 1), 1.0)
    if schedule == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return 1 - (1 - ratio) * done


def groups_of(
    labels: Int[Tensor, "rows tokens"], position_ids: Int[Tensor, "1 tokens"] | None
) -> Int[Tensor, "rows tokens-1"]:
    """The number, from 0, of the sequence that each predicted token belongs to; the first of a row has none.

    Args:
        position_ids: of a padding-free batch, whose documents lie end to end and start at position 0; None where each
            row is one sequence.
    """
    if position_ids is not None:
        return (position_ids[:, 1:] == 0).long().cumsum(-1)
    rows = torch.arange(labels.size(0), device=labels.device)
    return rows[:, None].expand(-1, labels.size(1) - 1)


def groups_by_token(batch: Mapping[str, Any]) -> Int[Tensor, "rows tokens"]:
    """The number, from 0, of the sequence that each token of a batch belongs to, a row's first token among them."""
    groups = groups_of(batch["labels"], batch.get("position_ids"))
    return torch.cat([groups[:, :1], groups], dim=1) if groups.size(1) else torch.zeros_like(batch["labels"])


@dataclass(frozen=True)
class Selection:
    """Which tokens are trained on.

    Attributes:
        weights: float32, n / s on selected tokens and 0 on the others. Those of a group add up to its number of valid
            tokens n, so a sum of weighted losses over the number of all valid tokens is the mean over the selected
            ones (eq. 4), on the scale of the plain mean.
        thresholds: the lowest selected score of each group; inf where nothing is valid.
    """

    weights: Float[Tensor, "..."]
    thresholds: Float[Tensor, " groups"]


def select_top(
    scores: Float[Tensor, "..."], valid: Bool[Tensor, "..."], groups: Int[Tensor, "..."], ratio: float
) -> Selection:
    """Select the highest-scored tokens of each group: s = round(ratio * n) of its n valid ones, at least one (eq. 5).

    A rank decides, not a quantile: among equal scores those that come first are taken, so that exactly s are.

    Args:
        valid: whether a token takes part.
        groups: number of each token's group, from 0.
        ratio: share that is selected.
    """
    group, device = groups.flatten(), scores.device
    flat = torch.where(valid, scores.double(), _LAST).flatten()
    count = int(group.max()) + 1 if group.numel() else 0
    per_group = torch.zeros(count, dtype=torch.float64, device=device)
    valid_count = per_group.scatter_add(0, group, valid.flatten().double())
    taken = torch.where(valid_count > 0, (ratio * valid_count).round().clamp(min=1), 0)
    # By group, then by score, then by place: both sorts keep the order of equals.
    by_score = flat.argsort(descending=True, stable=True)
    order = by_score[group[by_score].argsort(stable=True)]
    members = per_group.long().scatter_add(0, group, torch.ones_like(group))
    starts = members.cumsum(0) - members
    rank = torch.empty_like(group)
    rank[order] = torch.arange(group.numel(), device=device) - starts[group[order]]
    selected = (rank < taken[group]) & valid.flatten()
    weights = torch.where(selected, (valid_count / taken.clamp(min=1))[group], 0).float()
    lowest = torch.where(selected, flat, float("inf"))
    thresholds = torch.full_like(per_group, float("inf")).scatter_reduce(0, group, lowest, "amin")
    return Selection(weights.view(scores.shape), thresholds)


def random_scores(
    input_ids: Int[Tensor, "rows tokens"],
    valid: Bool[Tensor, "rows tokens-1"],
    groups: Int[Tensor, "rows tokens-1"],
    *,
    seed: int,
    step: int,
) -> Float[Tensor, "rows tokens-1"]:
    """Scores of the random control in [0, 1), drawn for each sequence from its own tokens, the seed and the step.

    They do not depend on how sequences are spread over processes, micro-batches and packed rows, nor on the random
    state of the run.

    Args:
        valid: whether a token takes part.
        groups: number of each token's sequence.
        seed: of the run.
        step: optimizer steps done so far.
    """
    scores = torch.zeros(valid.shape, dtype=torch.float64)
    tokens, valid, groups = input_ids[:, 1:].cpu(), valid.cpu(), groups.cpu()
    for group in groups.unique():
        mine = (groups == group) & valid
        content = tokens[mine].to(torch.int64).numpy().tobytes()
        digest = hashlib.blake2b(content, digest_size=8, key=f"{seed}-{step}".encode()).digest()
        # Generators take 63 bits on every platform.
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        scores[mine] = torch.rand(int(mine.sum()), generator=generator, dtype=torch.float64)
    return scores.to(input_ids.device)

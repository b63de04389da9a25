"""Rewards of demonstrations: each is graded as a rollout of its prompt would be (LUFFY, arXiv 2504.14945)."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from hpt_trl.rewards.completions import shape_completions

logger = logging.getLogger(__name__)


# Of local rows, and of how many rollouts their rewards are gathered: rows, prompts, completions and their token ids, so
# many of each; those beyond the rows are fillers.
AsRollouts = Callable[[list[int], int], tuple[list[dict[str, Any]], list[Any], list[Any], list[list[int]]]]


@dataclass
class Sampled:
    """What a process handed to its rewards."""

    inputs: list[dict[str, Any]]  # rows of the dataset, one per rollout
    prompts: list[Any]
    prompt_ids: list[list[int]]
    tokens: int  # of all completions, masked or not


class Scored(NamedTuple):
    """What a generation batch hands to routing; the tensors are over all processes."""

    sampled: Sampled
    rewards: Tensor  # (rollouts, rewards); NaN in a row of a rollout that could not be scored
    successes: Tensor  # (rollouts,) value of the success reward, also of those
    tokens: Tensor  # () tokens of all rollouts


def unpadded_prompts(batch: dict[str, Any]) -> list[list[int]]:
    """Token ids of the prompts of a batch as TRL pads it."""
    lengths = batch["prompt_mask"].sum(1).tolist()
    return [ids[len(ids) - length :] for ids, length in zip(batch["prompt_ids"].tolist(), lengths, strict=True)]


def owned(wanted: list[bool], group: int, rows: int, process: int) -> list[int]:
    """The prompts among `wanted` whose first rollout a process holds, of `rows` rollouts on each process."""
    return [prompt for prompt, is_wanted in enumerate(wanted) if is_wanted and prompt * group // rows == process]


def grade(
    wanted: list[bool],
    group: int,
    rows: int,
    processes: int,
    process: int,
    *,
    as_rollouts: AsRollouts,
    rewards_of: Callable[[list[dict[str, Any]], list[Any], list[Any], list[list[int]]], Tensor],
) -> Float[Tensor, " prompts"]:
    """Weighted reward of the demonstrations of the wanted prompts, on all processes; NaN of the others.

    Args:
        wanted: Of every prompt over all processes.
        group: Rollouts per prompt.
        rows: Rollouts on each process.
        as_rollouts: How the demonstrations of local rows are handed to rewards.
        rewards_of: Rows, prompts, completions and their token ids, as many on every process -> their weighted rewards
            over all processes.
    """
    owners = [owned(wanted, group, rows, other) for other in range(processes)]
    graded = torch.full((len(wanted),), torch.nan)
    # As many rows on every process: their rewards are gathered. A process without one grades an empty completion.
    count = max(map(len, owners))
    if count == 0:
        return graded
    local = [prompt * group - process * rows for prompt in owners[process]]
    rewards = rewards_of(*as_rollouts(local, count))
    for other, prompts in enumerate(owners):
        graded[prompts] = rewards[other * count : other * count + len(prompts)].float().cpu()
    return graded


def texts_as_rollouts(
    sampled: Sampled,
    ids_of: Callable[[int], list[int]],
    eos_token_id: int,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
) -> AsRollouts:
    """Demonstrations that are one completion each, decoded as a rollout's tokens are.

    Args:
        ids_of: Token ids of the demonstration of a local row.
        eos_token_id: What an empty completion of a filler is.
    """

    def handed(local: list[int], count: int) -> tuple[list[Any], list[Any], list[Any], list[list[int]]]:
        ids = [ids_of(row) for row in local] + [[eos_token_id]] * (count - len(local))
        rows = local + [0] * (count - len(local))
        prompts, prompt_ids = [sampled.prompts[row] for row in rows], [sampled.prompt_ids[row] for row in rows]
        completions = shape_completions(processing_class, prompts, prompt_ids, ids)
        return [sampled.inputs[row] for row in rows], prompts, completions, ids

    return handed


def log_grades(
    metrics: dict[str, list[float]],
    rewards: Float[Tensor, "prompts group"],
    demonstration_rewards: Float[Tensor, " prompts"],
) -> str | None:
    """Log what demonstrations scored, and the share below the best rollout of their prompt.

    Returns:
        A line about those below, with an example; None where there is none.
    """
    scored = int((~demonstration_rewards.isnan()).sum())
    if not scored:
        return None
    best = rewards.nan_to_num(nan=-torch.inf).amax(1)
    below = (demonstration_rewards < best - 1e-6).nonzero().flatten().tolist()
    metrics["hpt/demonstration_reward"].append(demonstration_rewards.nanmean().item())
    metrics["hpt/demonstrations_below_best"].append(len(below) / scored)
    if not below:
        return None
    return (
        f"{len(below)} of {scored} demonstrations of this batch score below the best rollout of their prompt "
        f"(e.g. {demonstration_rewards[below[0]]:g}, a rollout {best[below[0]]:g}): below the mean of its group a "
        "demonstration is trained away from. `hpt/demonstrations_below_best` goes on counting them; "
        "`demonstration_reward: <number>` gives all of them one reward."
    )

"""Rewards of demonstrations: each is graded as a rollout of its prompt would be (LUFFY, arXiv 2504.14945)."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from hpt_trl.rewards.completions import shape_completions

logger = logging.getLogger(__name__)


@dataclass
class Sampled:
    """What a process handed to its rewards."""

    inputs: list[dict[str, Any]]  # rows of the dataset, one per rollout
    prompts: list[Any]
    prompt_ids: list[list[int]]
    tokens: int  # of all completions, masked or not


def owned(wanted: list[bool], group: int, rows: int, process: int) -> list[int]:
    """The prompts among `wanted` whose first rollout a process holds, of `rows` rollouts on each process."""
    return [prompt for prompt, is_wanted in enumerate(wanted) if is_wanted and prompt * group // rows == process]


def grade(
    wanted: list[bool],
    group: int,
    sampled: Sampled,
    processes: int,
    process: int,
    *,
    ids_of: Callable[[int], list[int]],
    eos_token_id: int,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    rewards_of: Callable[[list[dict[str, Any]], list[Any], list[Any], list[list[int]]], Tensor],
) -> Float[Tensor, " prompts"]:
    """Weighted reward of the demonstrations of the wanted prompts, on all processes; NaN of the others.

    Args:
        wanted: Of every prompt over all processes.
        group: Rollouts per prompt.
        ids_of: Token ids of the demonstration of a local row.
        rewards_of: Rows, prompts, completions and their token ids, as many on every process -> their weighted rewards
            over all processes.
    """
    rows = len(sampled.inputs)
    owners = [owned(wanted, group, rows, other) for other in range(processes)]
    graded = torch.full((len(wanted),), torch.nan)
    # As many rows on every process: their rewards are gathered. A process without one grades an empty completion.
    count = max(map(len, owners))
    if count == 0:
        return graded
    local = [prompt * group - process * rows for prompt in owners[process]]
    ids = [ids_of(row) for row in local] + [[eos_token_id]] * (count - len(local))
    local += [0] * (count - len(local))
    prompts_of, prompt_ids = [sampled.prompts[row] for row in local], [sampled.prompt_ids[row] for row in local]
    completions = shape_completions(processing_class, prompts_of, prompt_ids, ids)
    rewards = rewards_of([sampled.inputs[row] for row in local], prompts_of, completions, ids)
    for other, prompts in enumerate(owners):
        graded[prompts] = rewards[other * count : other * count + len(prompts)].float().cpu()
    return graded


def below_best(
    rewards: Float[Tensor, "prompts group"], demonstration_rewards: Float[Tensor, " prompts"]
) -> tuple[float, str | None]:
    """Share of the scored demonstrations with a lower reward than the best rollout of their prompt.

    Returns:
        The share, and a line that says so with an example; None where there is none.
    """
    best = rewards.nan_to_num(nan=-torch.inf).amax(1)
    below = demonstration_rewards < best - 1e-6
    scored = int((~demonstration_rewards.isnan()).sum())
    if not below.any():
        return 0.0, None
    first = int(below.nonzero()[0])
    return int(below.sum()) / scored, (
        f"{int(below.sum())} of {scored} demonstrations of this batch score below the best rollout of their prompt "
        f"(e.g. {demonstration_rewards[first]:g}, a rollout {best[first]:g}): below the mean of its group a "
        "demonstration is trained away from. `hpt/demonstrations_below_best` goes on counting them; "
        "`demonstration_reward: <number>` gives all of them one reward."
    )

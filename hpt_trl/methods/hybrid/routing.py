"""What happens to every row of a generation batch, decided from the rewards of all processes."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from torch import Tensor
from trl.trainer.utils import pad

from hpt_trl.errors import UserError
from hpt_trl.methods.hybrid.config import HybridPostConfig
from hpt_trl.methods.hybrid.demonstrations import Demonstration
from hpt_trl.methods.hybrid.estimator import chord_mu, union_advantages
from hpt_trl.methods.hybrid.gate import no_contrast, prompt_coefficients
from hpt_trl.rewards.success import THRESHOLD_SLACK
from hpt_trl.rollouts.rows import Forward, Row
from hpt_trl.rollouts.step_metrics import Places, Totals, counts_of, totals_of


@dataclass
class Coefficients:
    """What each prompt is trained on, by the number of its solved rollouts; the same on all processes."""

    solved: Bool[Tensor, "prompts group"]
    on: Float[Tensor, " prompts"]  # of the rollouts
    off: Float[Tensor, " prompts"]  # of the demonstration as off-policy RL
    sft: Float[Tensor, " prompts"]  # of the demonstration as supervised learning
    signed: Bool[Tensor, " prompts"]  # SRFT's loss of the rollouts stands in for the stock one


@dataclass
class Plan:
    """Coefficients of every row of the generation batch, the same on all processes."""

    solved: Bool[Tensor, "prompts group"]
    sft: Float[Tensor, " prompts"]  # coefficient of the supervised term; 0: not trained
    off_advantage: Float[Tensor, " prompts"]  # off-policy coefficient x advantage of the demonstration
    rollout_factor: Float[Tensor, " prompts"]  # factor of the stock advantages
    union: Float[Tensor, "prompts group"]  # advantages over the union with the demonstration ...
    uses_union: Bool[Tensor, " prompts"]  # ... of the prompts that use them instead of the stock ones
    signed: Float[Tensor, "prompts group"]  # factor of SRFT's loss of the rollouts, which stands in for the stock one
    gated: Bool[Tensor, " prompts"]  # whose rollouts have no part in the loss
    dead: Bool[Tensor, "prompts group"]  # rollouts with advantage 0, the gated ones among them

    @property
    def needs_demonstration(self) -> Bool[Tensor, " prompts"]:
        return (self.sft != 0) | (self.off_advantage != 0)


def coefficients_of(
    success: Float[Tensor, "prompts group"],
    has_demonstration: Bool[Tensor, " prompts"],
    config: HybridPostConfig,
    step: int,
) -> Coefficients:
    """The strategy's coefficients of every prompt.

    Args:
        success: Raw value of the success reward of every rollout over all processes; NaN (it does not apply, or the
            rollout could not be scored) is not solved.
        has_demonstration: Whether each prompt has one.
        step: Optimizer steps done before this generation batch (CHORD's schedule).
    """
    solved = success >= config.success_threshold - THRESHOLD_SLACK
    coefficients = prompt_coefficients(
        solved.sum(1).to(success.dtype),
        success.size(1),
        config.unify_strategy,
        gate=config.switch_gate,
        gate_off=config.switch_gate_off,
        soft_table=config.soft_table,
    )
    # Without a demonstration, or without a reward that says whether it is needed, a prompt stays with its rollouts.
    stays = ~has_demonstration | success.isnan().all(dim=1)
    coefficients[stays] = coefficients.new_tensor([1.0, 0.0, 0.0])
    on, off, sft = coefficients.unbind(1)
    signed = torch.zeros_like(stays)
    if config.unify_strategy != "no":
        if config.offline_loss_type == "off_policy":
            off, sft = off + sft, torch.zeros_like(sft)
        elif config.offline_loss_type == "srft":
            off, signed = off + sft, on != 0
        elif config.offline_loss_type == "chord":
            mu = chord_mu(step, config.chord_mu, config.chord_mu_final, config.chord_mu_decay_steps)
            on, sft = on * (1 - mu), sft * mu
    return Coefficients(solved, on, off, sft * config.sft_loss_coef, signed)


def make_plan(
    rewards: Float[Tensor, "prompts group"],
    success: Float[Tensor, "prompts group"],
    demonstration_rewards: Float[Tensor, " prompts"],
    coefficients: Coefficients,
    config: HybridPostConfig,
) -> Plan:
    """Decide from coefficients and rewards how each row is trained.

    Args:
        rewards: Weighted reward of every rollout over all processes; NaN where a rollout could not be scored.
        success: Raw value of the success reward of every rollout; NaN where it does not apply.
        demonstration_rewards: Weighted reward of each demonstration with an off-policy term; NaN where it could not be
            scored: it then has no such term.
    """
    on, off, is_signed = coefficients.on, coefficients.off, coefficients.signed
    union, demonstration_advantage = union_advantages(rewards, demonstration_rewards, config.scale_rewards)
    flat_union = no_contrast(torch.cat([rewards, demonstration_rewards.unsqueeze(1)], dim=1))
    uses_union = (off != 0) & ~is_signed
    flat = torch.where(uses_union, flat_union, no_contrast(rewards)) & ~is_signed
    # SRFT gives a rollout that nobody called right or wrong no sign.
    unscored = rewards.isnan() | (is_signed.unsqueeze(1) & success.isnan())
    return Plan(
        solved=coefficients.solved,
        sft=coefficients.sft,
        off_advantage=torch.where(flat_union, 0.0, off * demonstration_advantage),
        rollout_factor=torch.where(is_signed, 0.0, on),
        union=union * on.unsqueeze(1),
        uses_union=uses_union,
        signed=torch.where(unscored, 0.0, torch.where(is_signed, on, 0.0).unsqueeze(1)),
        gated=on == 0,
        dead=((on == 0) | flat).unsqueeze(1) | unscored,
    )


def demonstration_row(demonstration: Demonstration, row: Row, plan: Plan) -> Row:
    """The demonstration of a rollout's prompt, with the coefficients that the plan gives it.

    Raises:
        UserError: an environment gave it another prompt than the rollout.
    """
    # One that found no room for a turn stands behind no prompt.
    acted = demonstration.segments is not None and any(demonstration.trained)
    if acted and demonstration.context != len(row.prompt_ids):
        raise UserError(
            "`prompt` of the environment wrote another prompt for a trajectory than for the rollouts of its row; it "
            "may depend on the row's messages alone."
        )
    device = row.completion_ids.device
    return row.with_completion(
        torch.tensor(demonstration.ids, device=device),
        # As for the turns of tools in a rollout: seen, but without a loss.
        tokens={"tool_mask": torch.tensor(demonstration.trained, device=device)},
        segments=demonstration.segments,
        sft_coefficient=plan.sft[row.prompt].item(),
        off_advantage=plan.off_advantage[row.prompt].item(),
        truncated=demonstration.truncated,
    )


@dataclass
class MicroBatch:
    """What a micro-batch holds beside the stock tensors of its rollouts.

    The stock loss sees the rollouts alone. Its forward pass takes the demonstrations along and leaves out fillers,
    rows that only keep the shapes equal on all processes.
    """

    forwarded: int  # leading rows of the stock batch that go through the forward pass
    forward: Forward | None  # the rollouts, then the demonstrations; None: the stock batch as it is
    demonstration_mask: Float[Tensor, "demonstrations tokens"]
    sft_coefficients: Float[Tensor, " demonstrations"]
    off_advantages: Float[Tensor, " demonstrations"]
    signed: Float[Tensor, " rows"]  # factor of SRFT's loss of each rollout
    solved: Bool[Tensor, " rows"]
    places: Places  # where the base would train each rollout
    has_rollouts: bool  # whether any row of the stock batch is more than a filler
    has_sft: bool
    has_off_policy: bool
    has_signed: bool
    rollouts_of_all: int  # rollouts in this micro-batch on all processes, fillers excluded
    rollout_scale: float  # rows of this micro-batch / of a stock one: undoes a mean over rows
    rows_per_step: int  # rollouts per optimizer step over all processes, dropped ones included
    tokens_per_step: Tensor  # () tokens of the rollouts per optimizer step, dropped and masked ones included
    prompts_per_step: float  # prompts per optimizer step over all processes
    sft_tokens: float  # tokens of demonstrations with a supervised term, per optimizer step over all processes
    demonstration_tokens: float  # tokens of all demonstrations, likewise

    @classmethod
    def of(
        cls, stock_rows: list[Row], demonstrations: list[Row], *, totals: Totals, ends_step: bool, **counts: Any
    ) -> "MicroBatch":
        """Collect the coefficients of a micro-batch's rows; `stock_rows` are those that the stock loss sees."""
        device = stock_rows[0].prompt_ids.device
        masks = [row.tokens["tool_mask"] for row in demonstrations]
        mask = pad(masks, padding_value=0, padding_side="right") if masks else torch.zeros(0, 0)
        sft = [row.sft_coefficient for row in demonstrations]
        off = [row.off_advantage for row in demonstrations]
        signed = [row.signed for row in stock_rows]
        return cls(
            demonstration_mask=mask.float().to(device),
            sft_coefficients=torch.tensor(sft, device=device),
            off_advantages=torch.tensor(off, device=device),
            signed=torch.tensor(signed, device=device),
            solved=torch.tensor([row.solved for row in stock_rows], device=device),
            places=Places(torch.tensor([row.micro for row in stock_rows], device=device), totals, ends_step),
            has_sft=any(sft),
            has_off_policy=any(off),
            has_signed=any(signed),
            **counts,
        )


def count_rows(
    live: list[int], buffers: list[dict[str, Any]], per_step: int, accelerator: Accelerator
) -> tuple[list[int], list[int], list[Totals]]:
    """Counts over all processes, by one gather.

    Args:
        live: Rollouts in each micro-batch of this process.
        buffers: The micro-batches as the base would train them.
        per_step: Micro-batches of an optimizer step.

    Returns:
        For each micro-batch the most rollouts that a process has and those of all; `Totals` of each optimizer step.
    """
    counted = counts_of(buffers)
    counts = torch.cat([torch.tensor(live).to(counted).unsqueeze(1), counted], dim=1)
    counts = accelerator.gather(counts).view(-1, *counts.shape)
    widest, summed = counts[:, :, 0].amax(0).int().tolist(), counts.sum(0)
    rows = len(buffers[0]["completion_ids"]) * accelerator.num_processes
    return widest, summed[:, 0].int().tolist(), totals_of(summed[:, 1:], per_step, rows)


def refuse_what_cannot_work(config: HybridPostConfig, arguments: dict[str, Any]) -> None:
    """Settings under which demonstrations would be trained wrongly.

    Raises:
        ValueError: with the reason and what to set instead.
    """
    if not config.uses_demonstrations:
        return
    if config.temperature != 1.0:
        raise ValueError(
            f"`temperature` is {config.temperature}, but the log-probabilities of demonstrations are taken at the "
            "sampling temperature and would be those of another distribution. Set `temperature: 1.0`."
        )
    steps_per_generation = config.steps_per_generation or config.gradient_accumulation_steps
    if steps_per_generation % config.gradient_accumulation_steps:
        raise ValueError(
            f"`steps_per_generation` ({steps_per_generation}) is not a multiple of "
            f"`gradient_accumulation_steps` ({config.gradient_accumulation_steps}): an optimizer step would mix "
            "generation batches and the demonstrations of one step could not share a denominator."
        )
    if config.uses_union and config.multi_objective_aggregation != "sum_then_normalize":
        raise ValueError(
            f"`multi_objective_aggregation` is {config.multi_objective_aggregation!r}, which normalizes over the "
            "rollouts alone, but an off-policy term takes advantages over rollouts and demonstration together. Set "
            "`multi_objective_aggregation: sum_then_normalize`."
        )
    if config.remove_unused_columns:
        raise ValueError("`remove_unused_columns: true` removes the demonstrations. Set it to false.")
    if arguments.get("environment") is not None and config.max_demonstration_length is not None:
        raise ValueError(
            f"`max_demonstration_length` is {config.max_demonstration_length}, which cuts demonstrations of one "
            "completion; in an environment `max_context_length` bounds them. Drop it."
        )
    for name in ("tools", "rollout_func", "environment_factory"):
        if arguments.get(name) is not None:
            raise ValueError(
                f"`{name}` changes the prompt or the turns of a rollout, which a demonstration of the dataset cannot "
                "follow. Use `environment` instead, in which demonstrations are played as rollouts are "
                "(`ToolEnvironment` for functions), or `unify_strategy: no`."
            )


def without_gated(
    completion_mask: Float[Tensor, "rows tokens"], index: Tensor, plan: Plan, group_size: int
) -> Float[Tensor, "rows tokens"]:
    """The mask with 0 on gated rollouts, so that an entropy bonus does not act on them where they are computed.

    Args:
        index: Row of each in the generation batch of all processes.
    """
    gated = plan.gated[index // group_size].to(completion_mask.device)
    return completion_mask * ~gated.unsqueeze(1)


def routed_advantages(
    advantages: Float[Tensor, " rows"], index: Tensor, plan: Plan, group_size: int
) -> Float[Tensor, " rows"]:
    """The stock advantages under a plan: scaled per prompt, or replaced by those over the union.

    Args:
        advantages: Of a micro-batch, shape (rows,) or (rows, tokens).
        index: Row of each in the generation batch of all processes.
    """
    prompt = index // group_size
    shape = (-1,) + (1,) * (advantages.ndim - 1)
    factor = plan.rollout_factor[prompt].to(advantages).view(shape)
    union = plan.union.flatten()[index].to(advantages).view(shape)
    uses_union = plan.uses_union[prompt].to(advantages.device).view(shape)
    return torch.where(uses_union, union, advantages * factor)

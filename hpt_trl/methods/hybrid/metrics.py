"""Metrics: what became of the rollouts, and the terms of the loss."""

import torch
from accelerate import Accelerator
from torch import Tensor

from hpt_trl.methods.hybrid.routing import MicroBatch, Plan
from hpt_trl.rollouts.dealing import padded_area
from hpt_trl.rollouts.rows import Row


def log_routing(
    metrics: dict[str, list[float]],
    plan: Plan,
    micros: list[list[Row]],
    per_step: int,
    accelerator: Accelerator,
    pads: bool | None,
) -> list[tuple[float, float]]:
    """Log what became of the rollouts.

    Args:
        micros: The rows of each micro-batch of this process.
        per_step: Micro-batches of an optimizer step.
        pads: Whether each micro-batch is padded to its own longest row, or not at all; None: as the base pads it.

    Returns:
        For each optimizer step, over all processes: trained tokens of the demonstrations with a supervised term, and
        of all demonstrations.
    """
    demonstrations = [row for micro in micros for row in micro if row.is_demonstration]
    lengths = [[length for row in micro for length in row.lengths] for micro in micros]
    steps = len(micros) // per_step
    counts = [
        sum(len(micro) for micro in micros),
        sum(padded_area(micro) if pads else sum(micro) for micro in lengths),
        sum(sum(micro) for micro in lengths),
        len(demonstrations),
        sum(row.truncated for row in demonstrations),
    ]
    tokens = torch.zeros(2 * steps, device=accelerator.device)
    for row in demonstrations:
        trained = row.tokens.get("tool_mask", row.completion_mask).sum()
        tokens[row.window] += trained * (row.sft_coefficient != 0)
        tokens[steps + row.window] += trained
    sums = torch.cat([torch.tensor(counts, dtype=torch.float32, device=accelerator.device), tokens])
    sums = accelerator.reduce(sums, reduction="sum").tolist()
    rows, area, live, demonstrated, truncated = sums[: len(counts)]
    metrics["hpt/solved_mean"].append(plan.solved.float().mean().item())
    metrics["hpt/sft_fraction"].append((plan.sft != 0).float().mean().item())
    metrics["hpt/off_fraction"].append((plan.off_advantage != 0).float().mean().item())
    metrics["hpt/rows_kept"].append(rows / plan.solved.numel())
    metrics["hpt/demonstrations_truncated"].append(truncated / max(demonstrated, 1))
    if pads is not None:
        metrics["hpt/padding"].append(area / live - 1 if live else 0.0)
    of_sft, of_all = sums[len(counts) :][:steps], sums[len(counts) :][steps:]
    return list(zip(of_sft, of_all, strict=True))


class StepLosses:
    """Adds up the terms of an optimizer step's loss and logs them at its end, averaged as the gradients are."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._sums = torch.zeros(4, device=accelerator.device)

    def add(self, parts: Tensor, micro: MicroBatch, metrics: dict[str, list[float]]) -> None:
        """Add a micro-batch's terms, see `loggable`."""
        self._sums = self._sums + parts
        if not self.accelerator.sync_gradients:
            return
        rl, off, sft, nll = self.accelerator.reduce(self._sums, reduction="sum").tolist()
        self._sums = torch.zeros_like(self._sums)
        for name, loss in (("rl", rl), ("off", off), ("sft", sft)):
            metrics[f"hpt/{name}_loss"].append(loss / self.accelerator.num_processes)
        if micro.demonstration_tokens:
            metrics["hpt/demo_nll"].append(nll / micro.demonstration_tokens)

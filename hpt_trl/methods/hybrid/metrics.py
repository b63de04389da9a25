"""Metrics: what became of the rollouts, and the base's metrics of an optimizer step.

The second are logged as the base would log them, had no rollout been dropped. Its means are over the rows of a
micro-batch: dropped rollouts would be missing from them, fillers would count, and rows are dealt to other batches than
the base's. So what the base logs is taken back, and clipped tokens are counted anew by the micro-batch in which the
base would have trained them: a dropped rollout has advantage 0 and is not clipped. Entropy (and VESPO's phi) of a
dropped rollout is not known: their means are over the computed ones.
"""

from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from torch import Tensor
from trl import GRPOConfig

from hpt_trl.methods.hybrid.routing import MicroBatch, Plan, Totals
from hpt_trl.methods.hybrid.terms import Scores
from hpt_trl.rollouts.dealing import padded_area
from hpt_trl.rollouts.rows import Row, loss_mask

_PHI = "vespo/phi_seq_mean"
_CISPO = "cispo_clip_ratio"
_CLIP = "clip_ratio"
_TAKEN_BACK = (
    "entropy",
    _PHI,
    _CISPO,
    *(f"{_CLIP}/{name}" for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max")),
)


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


def lengths_of(metrics: dict[str, list[float]]) -> dict[str, int]:
    """How many values stand under each of the names that `take_back` looks at."""
    return {name: len(metrics[name]) for name in _TAKEN_BACK if name in metrics}


def take_back(metrics: dict[str, list[float]], lengths: dict[str, int]) -> dict[str, float]:
    """Remove and return what was logged since `lengths_of`, one value of each name."""
    taken = {}
    for name in _TAKEN_BACK:
        if len(metrics.get(name, ())) > lengths.get(name, 0):
            taken[name] = metrics[name].pop()
            if not metrics[name]:
                del metrics[name]
    return taken


def clipped(
    logps: Float[Tensor, "rows tokens"],
    inputs: dict[str, Any],
    mask: Float[Tensor, "rows tokens"],
    config: GRPOConfig,
) -> tuple[Bool[Tensor, "rows columns"], Bool[Tensor, "rows columns"]]:
    """Whether the ratio is clipped from below and from above: of each token, or (one column) of each sequence."""
    old = inputs.get("old_per_token_logps")
    log_ratio = logps - (logps if old is None else old)
    if config.importance_sampling_level == "sequence":
        log_ratio = ((log_ratio * mask).sum(1) / mask.sum(1).clamp(min=1)).unsqueeze(1)
    ratio, advantages = log_ratio.exp(), inputs["advantages"]
    advantages = advantages.unsqueeze(1) if advantages.ndim == 1 else advantages
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    if config.loss_type == "cispo":
        above = (ratio > high) & (advantages > 0)
        return torch.zeros_like(above), above
    if config.delta is not None:
        ratio = ratio.clamp(max=config.delta)
    return (ratio < 1 - config.epsilon) & (advantages < 0), (ratio > 1 + high) & (advantages > 0)


class StepMetrics:
    """Adds up the computed rollouts of an optimizer step; `values` are its metrics."""

    def __init__(self, config: GRPOConfig, micro_batches: int, device: torch.device):
        self.config = config
        self.by_sequence = config.importance_sampling_level == "sequence"
        # Low and high clipped, and rollouts seen, by micro-batch; then the least low and the greatest high share.
        self.sums = torch.zeros(3, micro_batches, device=device)
        self.least = torch.full((micro_batches,), torch.inf, device=device)
        self.greatest = torch.full((micro_batches,), -torch.inf, device=device)
        self.entropy = torch.zeros(2, device=device)
        self.phi, self.phi_rows = 0.0, 0

    @torch.no_grad()
    def add(
        self, scores: Scores, inputs: dict[str, Any], micro: MicroBatch, taken: dict[str, float], processes: int
    ) -> None:
        """Add the rollouts of a micro-batch.

        Args:
            taken: What the base logged of it.
        """
        mask = loss_mask(inputs)
        self.entropy += torch.stack([(scores.entropies * mask).sum(), mask.sum()])
        if _PHI in taken:
            # A mean over all rows, in which a filler counts as 1.
            rows = len(mask) * processes
            self.phi += taken[_PHI] * rows - (rows - micro.rollouts_of_all)
            self.phi_rows += micro.rollouts_of_all
        if not (_CISPO in taken or f"{_CLIP}/low_mean" in taken):
            return
        low, high = clipped(scores.logps, inputs, mask, self.config)
        low, high = (low.float(), high.float()) if self.by_sequence else (low * mask, high * mask)
        counts = mask.new_ones(len(mask)) if self.by_sequence else mask.sum(1)
        counted = (counts > 0) & (torch.arange(len(mask), device=mask.device) < micro.forwarded * micro.has_rollouts)
        low, high = low.sum(1) * counted, high.sum(1) * counted
        self.sums.index_add_(1, micro.micros, torch.stack([low, high, counted.float()]))
        shares = torch.stack([low, high]) / counts.clamp(min=1)
        self.least.scatter_reduce_(0, micro.micros, torch.where(counted, shares[0], torch.inf), "amin")
        self.greatest.scatter_reduce_(0, micro.micros, torch.where(counted, shares[1], -torch.inf), "amax")

    def vector(self) -> Tensor:
        """The sums of this process, to be gathered for `values`."""
        return torch.cat([self.entropy, self.sums.flatten(), self.least, self.greatest])

    def values(self, gathered: Float[Tensor, "processes sums"], totals: Totals) -> dict[str, list[float]]:
        """The step's metrics by the base's names; nothing where no rollout was computed that could tell."""
        width = len(self.least)
        sums, (least, greatest) = gathered[:, : -2 * width].sum(0).tolist(), gathered[:, -2 * width :].split(width, 1)
        lows, highs, seen = (sums[2 + i * width : 2 + (i + 1) * width] for i in range(3))
        values: dict[str, list[float]] = {}
        if sums[1]:
            values["entropy"] = [sums[0] / sums[1]]
        if self.config.loss_type == "vespo" and self.phi_rows:
            values[_PHI] = [self.phi / self.phi_rows]
        rows = [totals.rows] * width if self.by_sequence else totals.scored
        parts = [totals.rows] * width if self.by_sequence else totals.tokens
        low_mean, high_mean = ([x / max(n, 1) for x, n in zip(xs, parts, strict=True)] for xs in (lows, highs))
        if self.config.loss_type == "cispo":
            values[_CISPO] = high_mean
        elif self.config.loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo"):
            extremes = zip(rows, seen, least.amin(0).tolist(), greatest.amax(0).tolist(), strict=True)
            bounds = [
                (torch.nan, torch.nan) if not n else (low, high) if kept == n else (0.0, max(high, 0.0))
                for n, kept, low, high in extremes
            ]
            values |= {
                f"{_CLIP}/low_mean": low_mean,
                f"{_CLIP}/high_mean": high_mean,
                f"{_CLIP}/region_mean": [low + high for low, high in zip(low_mean, high_mean, strict=True)],
                f"{_CLIP}/low_min": [low for low, _ in bounds],
                f"{_CLIP}/high_max": [high for _, high in bounds],
            }
        return values


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

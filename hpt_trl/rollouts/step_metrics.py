"""What the base logs of an optimizer step, as it would log it had no rollout been dropped or dealt elsewhere.

The base's metrics are means over the rows of a micro-batch, and then over the micro-batches. Dropped rollouts would be
missing from them, fillers would count, and rows are dealt to other micro-batches than the base's. So what the base logs
is taken back, and counted anew by the micro-batch in which the base would have trained each rollout. A dropped rollout
has advantage 0 and is not clipped. Its entropy (and VESPO's phi) is not known: their means are over the computed ones,
and NaN where there are none, which the base's `log` writes as null.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from torch import Tensor
from trl import GRPOConfig

from hpt_trl.rollouts.rows import loss_mask

# Under which a batch holds the `Places` of its rollouts.
PLACES = "places"
_PHI = "vespo/phi_seq_mean"
_CISPO = "cispo_clip_ratio"
_CLIP = "clip_ratio"
_TAKEN_BACK = (
    "entropy",
    _PHI,
    _CISPO,
    *(f"{_CLIP}/{name}" for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max")),
)


@dataclass
class Totals:
    """Of each micro-batch of an optimizer step as the base would train it, over all processes."""

    tokens: list[float]  # loss tokens of its rollouts
    scored: list[float]  # rollouts with a loss token
    rows: float  # rollouts


@dataclass
class Places:
    """Where the base would have trained the rollouts of a micro-batch."""

    micros: Tensor  # (rows,) micro-batch of the optimizer step
    totals: Totals  # of the optimizer step
    ends_step: bool  # whether the micro-batch is the step's last one


def counts_of(buffers: list[dict[str, Any]]) -> Float[Tensor, "micros 2"]:
    """Loss tokens, and rollouts with one, of each of this process's micro-batches as the base would train them."""
    tokens = [loss_mask(buffer).sum(1) for buffer in buffers]
    return torch.stack([torch.stack([row.sum(), (row > 0).sum()]) for row in tokens])


def totals_of(counts: Float[Tensor, "micros 2"], per_step: int, rows: float) -> list[Totals]:
    """`Totals` of each optimizer step.

    Args:
        counts: `counts_of`, summed over all processes.
        per_step: Micro-batches of an optimizer step.
        rows: Rollouts of a micro-batch over all processes.
    """
    tokens, scored = counts.T.tolist()
    return [Totals(tokens[i : i + per_step], scored[i : i + per_step], rows) for i in range(0, len(counts), per_step)]


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
    """Adds up the computed rollouts of an optimizer step, and logs by the base's names at its end."""

    def __init__(self, config: GRPOConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.by_sequence = config.importance_sampling_level == "sequence"
        self._sums: _Sums | None = None

    @torch.no_grad()
    def add(
        self,
        logps: Float[Tensor, "rows tokens"],
        entropies: Float[Tensor, "rows tokens"],
        inputs: dict[str, Any],
        places: Places,
        taken: dict[str, float],
        metrics: dict[str, list[float]],
        *,
        computed: int | None = None,
        of_all: int | None = None,
    ) -> None:
        """Add the rollouts of a micro-batch.

        Args:
            taken: What the base logged of it, see `take_back`.
            metrics: Get what the base would have logged, where the micro-batch ends the step.
            computed: Leading rows that are rollouts; the others are fillers, whose loss mask is 0. None: all.
            of_all: Rollouts in this micro-batch on all processes, without fillers. None: all rows.
        """
        mask = loss_mask(inputs)
        if self._sums is None:
            self._sums = _Sums(len(places.totals.tokens), mask.device)
        sums = self._sums
        sums.entropy.index_add_(1, places.micros, torch.stack([(entropies.float() * mask).sum(1), mask.sum(1)]))
        if _PHI in taken:
            # A mean over all rows, in which a filler counts as 1.
            rows = len(mask) * self.accelerator.num_processes
            rollouts = rows if of_all is None else of_all
            sums.phi += taken[_PHI] * rows - (rows - rollouts)
            sums.phi_rows += rollouts
        if _CISPO in taken or f"{_CLIP}/low_mean" in taken:
            self._add_clipped(sums, logps, inputs, mask, places.micros, len(mask) if computed is None else computed)
        if places.ends_step:
            for name, values in self._values(sums, places.totals).items():
                metrics[name] += values
            self._sums = None

    def _add_clipped(
        self, sums: "_Sums", logps: Tensor, inputs: dict[str, Any], mask: Tensor, micros: Tensor, computed: int
    ) -> None:
        low, high = clipped(logps, inputs, mask, self.config)
        low, high = (low.float(), high.float()) if self.by_sequence else (low * mask, high * mask)
        counts = mask.new_ones(len(mask)) if self.by_sequence else mask.sum(1)
        counted = (counts > 0) & (torch.arange(len(mask), device=mask.device) < computed)
        low, high = low.sum(1) * counted, high.sum(1) * counted
        sums.clipped.index_add_(1, micros, torch.stack([low, high, counted.float()]))
        shares = torch.stack([low, high]) / counts.clamp(min=1)
        sums.least.scatter_reduce_(0, micros, torch.where(counted, shares[0], torch.inf), "amin")
        sums.greatest.scatter_reduce_(0, micros, torch.where(counted, shares[1], -torch.inf), "amax")

    def _values(self, sums: "_Sums", totals: Totals) -> dict[str, list[float]]:
        """The step's metrics by the base's names, NaN where no rollout was computed that could tell."""
        gathered = self.accelerator.gather(sums.vector().unsqueeze(0)).view(-1, 7, len(totals.tokens))
        entropies, tokens, lows, highs, seen = gathered[:, :5].sum(0).tolist()
        least, greatest = gathered[:, 5].amin(0).tolist(), gathered[:, 6].amax(0).tolist()
        width = len(tokens)
        values = {"entropy": [e / n if n else math.nan for e, n in zip(entropies, tokens, strict=True)]}
        if self.config.loss_type == "vespo":
            values[_PHI] = [sums.phi / sums.phi_rows if sums.phi_rows else math.nan]
        rows = [totals.rows] * width if self.by_sequence else totals.scored
        parts = [totals.rows] * width if self.by_sequence else totals.tokens
        low_mean, high_mean = ([x / max(n, 1) for x, n in zip(xs, parts, strict=True)] for xs in (lows, highs))
        if self.config.loss_type == "cispo":
            values[_CISPO] = high_mean
        elif self.config.loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo"):
            extremes = zip(rows, seen, least, greatest, strict=True)
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


class _Sums:
    """Sums over the rollouts of an optimizer step, by the micro-batch in which the base would train each."""

    def __init__(self, micro_batches: int, device: torch.device):
        self.entropy = torch.zeros(2, micro_batches, device=device)  # of their tokens, and the tokens
        self.clipped = torch.zeros(3, micro_batches, device=device)  # from below, from above, and rollouts seen
        self.least = torch.full((micro_batches,), torch.inf, device=device)  # share clipped from below
        self.greatest = torch.full((micro_batches,), -torch.inf, device=device)  # share clipped from above
        self.phi, self.phi_rows = 0.0, 0

    def vector(self) -> Tensor:
        return torch.cat([self.entropy.flatten(), self.clipped.flatten(), self.least, self.greatest])

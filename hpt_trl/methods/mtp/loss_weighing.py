"""Weights that are known once a step has computed its losses: Rho-1's selection, for several heads."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import pad

from hpt_trl.methods.mtp.config import RHO1, WeightedMTPConfig
from hpt_trl.methods.mtp.positions import predicted
from hpt_trl.methods.mtp.weighing import Sample, Weighing
from hpt_trl.token_scores.cache import as_bits, scores_of
from hpt_trl.token_scores.head_selection import select_for_heads
from hpt_trl.token_scores.kinds import REFERENCE_NLL
from hpt_trl.token_scores.samples import FirstSequence
from hpt_trl.token_scores.scoring import Scorer
from hpt_trl.token_scores.selection import groups_by_token, ratio_at

_MEASURES = ("selected_loss", "unselected_loss", "mean_excess", "select_ratio")


class LossWeighing(Weighing):
    """The tokens of each head whose loss exceeds the reference's most.

    Args:
        config: the trainer's.
        collator: of the training batches, which carry the reference's losses where they are cached.
        accelerator: the trainer's.
        score: of a batch, the losses of a reference that runs beside the training; None where they are cached.
    """

    def __init__(self, config: WeightedMTPConfig, collator: Any, accelerator: Accelerator, score: Scorer | None = None):
        self.config, self.collator, self.accelerator = config, collator, accelerator
        self._score = score
        # Sums and counts of each head, see `_MEASURES`.
        self._sums: Tensor | None = None
        # The step that is shown, the head and its first sequence.
        self._shown: tuple[int, int, FirstSequence] | None = None

    def by_losses(self, batch: Mapping[str, Any], *, step: int, max_steps: int) -> Callable[[Tensor], Tensor]:
        carried = dict(batch)
        if self._score is not None and REFERENCE_NLL.name not in carried:
            # As bits, like those of a cache.
            carried[REFERENCE_NLL.name] = as_bits(self._score(carried))
        return partial(self._weights, carried, step=step, max_steps=max_steps)

    def _weights(self, batch: dict[str, Any], losses: Tensor, *, step: int, max_steps: int) -> Tensor:
        config = self.config
        reference = scores_of(batch, REFERENCE_NLL)
        tokens = batch["labels"].shape[1]
        found = [predicted(batch, k) for k in range(1, len(losses) + 1)]
        valid = torch.stack([pad(one, (tokens - one.shape[1], 0)) for one in found])
        groups = groups_by_token(batch)
        if config.selection_scope == "micro_batch":
            groups = torch.zeros_like(groups)
        ratio = ratio_at(
            step,
            ratio=config.select_ratio,
            schedule=config.select_ratio_schedule,
            warmup_steps=config.selection_warmup_steps,
            max_steps=max_steps,
        )
        weights = select_for_heads(
            losses,
            reference,
            valid,
            groups,
            ratio,
            first_head=config.selection_first_head,
            anchored=config.selection_anchored,
        )
        self._measure(losses, losses - reference, valid, weights)
        self._show(batch, losses, valid, weights, step)
        return weights

    def _measure(self, losses: Tensor, excess: Tensor, valid: Tensor, weights: Tensor) -> None:
        """Add a micro-batch to the measures of the selection; all are (n, B, T)."""
        selected = valid & (weights > 0)
        parts = ((losses, selected), (losses, valid & ~selected), (excess, valid), (selected.float(), valid))
        sums = [(torch.where(mask, values.double(), 0.0).sum((1, 2)), mask.sum((1, 2))) for values, mask in parts]
        found = torch.stack([torch.stack([total, count.double()]) for total, count in sums], -1)
        if self._sums is None:
            self._sums = found.new_zeros(2, self.config.n_future_tokens, len(parts))
        # A curriculum may begin with less heads.
        self._sums[:, : len(losses)] += found

    def _show(self, batch: dict[str, Any], losses: Tensor, valid: Tensor, weights: Tensor, step: int) -> None:
        """Keep the first sequence of a step; all are (n, B, T)."""
        if self._shown is None or self._shown[0] != step:
            # The next token is learnt of all tokens where head 1 does not select.
            head = int(self.config.selection_first_head == "full" and len(losses) > 1)
            first = FirstSequence(batch, valid[head])
            first.note("weight", weights[head])
            first.note("loss", losses[head])
            self._shown = step, head, first

    def sample(self) -> Sample | None:
        """See `Weighing`; the weights are those of the first head that selects, and its losses."""
        shown, self._shown = self._shown, None
        if shown is None:
            return None
        _, head, first = shown
        return first.sample(weighting=f"{RHO1}, head {head + 1}", value=None)

    def pop_metrics(self) -> dict[str, float]:
        """By head: mean loss of selected and of other tokens, mean excess over the reference (nats), share selected."""
        nothing = torch.zeros(2, self.config.n_future_tokens, len(_MEASURES), dtype=torch.float64)
        sums, self._sums = nothing.to(self.accelerator.device) if self._sums is None else self._sums, None
        totals, counts = cast(Tensor, self.accelerator.reduce(sums, "sum")).tolist()
        return {
            f"{name}_head_{head}": total / count
            for head, own in enumerate(zip(totals, counts, strict=True), start=1)
            for name, total, count in zip(_MEASURES, *own, strict=True)
            if count > 0
        }

"""What gives the tokens of a multi-token training their weights: frozen models, or caches of what they say.

A value model's values become weights of tokens, which are known before a step (`hpt_trl.token_scores.weighting`); a
reference model's losses are compared with those of the heads, which are known once the step has computed them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from hpt_trl.errors import UserError
from hpt_trl.methods.mtp.config import RHO1, WeightedMTPConfig
from hpt_trl.methods.mtp.positions import predicted
from hpt_trl.token_scores.cache import WithScores, as_bits, scores_of
from hpt_trl.token_scores.head_selection import select_for_heads
from hpt_trl.token_scores.kinds import REFERENCE_NLL, VALUES
from hpt_trl.token_scores.reference import check_reference
from hpt_trl.token_scores.reference_scores import reference_cache, reference_scorer
from hpt_trl.token_scores.scoring import Scorer
from hpt_trl.token_scores.selection import groups_by_token, ratio_at
from hpt_trl.token_scores.values import value_cache, value_scorer
from hpt_trl.token_scores.weighting import WEIGHTS, TokenWeights
from hpt_trl.token_scores.weighting_checks import check_weighting

# What a batch may carry for it, besides what the model reads.
CARRIED = (VALUES.name, REFERENCE_NLL.name)

_SELECTION = ("selected_loss", "unselected_loss", "mean_excess", "select_ratio")


def check_frozen_models(config: WeightedMTPConfig, tokenizer: PreTrainedTokenizerBase, *, model: str | None) -> None:
    """Refuse a value model or a reference that cannot judge the trained model's tokens; no weights are loaded.

    Raises:
        UserError: there is none, or it has another tokenizer; the message starts with the key.
    """
    check_weighting(config, tokenizer, model=model)
    if config.needs_reference:
        check_reference(config, tokenizer, model=model)


class Weighing:
    """The weights of a `WeightedMTPTrainer`'s tokens.

    Args:
        config: the trainer's; its `weighting` is not `uniform`.
        tokenizer: of the trained model.
        rows: the prepared training rows, for the caches.
        collator: the trainer's.
        accelerator: the trainer's.

    Raises:
        UserError: a cache that cannot be used.
    """

    def __init__(
        self,
        config: WeightedMTPConfig,
        tokenizer: PreTrainedTokenizerBase,
        rows: Any,
        collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        accelerator: Accelerator,
    ):
        self.config, self.accelerator = config, accelerator
        # Of the training batches alone.
        self.collator: Any = collator
        self._reference: Scorer | None = None
        device, values = accelerator.device, None
        if config.needs_values:
            if config.value_mode == "cached":
                self.collator = WithScores(
                    collator, value_cache(config, tokenizer, _sized(rows), collator, device=device)
                )
            else:
                values = value_scorer(config, device)
        if config.needs_reference:
            if config.reference_mode == "cached":
                cache = reference_cache(config, tokenizer, _sized(rows), collator, device=device)
                self.collator = WithScores(collator, cache)
            else:
                self._reference = reference_scorer(config, device)
        self._first_nll: Tensor | None = None
        # Sums and counts of each head, see `_SELECTION`; and of what the page shows.
        self._selected: Tensor | None = None
        self._shown_selection: tuple[int, int, dict[str, Tensor]] | None = None
        self.tokens: TokenWeights | None = None
        if config.weighting != RHO1:
            self.tokens = TokenWeights(
                config,
                all_sum=lambda tensor: cast(Tensor, accelerator.reduce(tensor.to(device), "sum")),
                score=values,
                decode=lambda ids: str(tokenizer.decode(ids)),
            )

    def of_step(self, batches: list[dict[str, Any]], *, step: int) -> list[Tensor]:
        """Weights of the micro-batches of an optimizer step, with the mean 1, by target token: (B, T) each.

        Args:
            step: optimizer steps done so far.

        Raises:
            UserError: a weight that is no number, with its row.
        """
        assert self.tokens is not None
        self._first_nll = None
        return self.tokens.weigh(batches, step=step)

    def of_losses(self, batch: Mapping[str, Any], losses: Tensor, *, step: int, max_steps: int) -> Tensor:
        """What each head's loss of each target token is multiplied by: Rho-1's selection. Shape: (n, B, T).

        Args:
            batch: a micro-batch, with the reference's losses where they are cached.
            losses: of all heads by target token, 0 where there is none, (n, B, T).
            step: optimizer steps done so far.
            max_steps: of the whole run.
        """
        config = self.config
        reference = scores_of(dict(batch), REFERENCE_NLL)
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
        self._note_selection(batch, losses, losses - reference, valid, weights)
        self._show_selection(batch, losses, valid, weights, step)
        return weights

    def _note_selection(
        self, batch: Mapping[str, Any], losses: Tensor, excess: Tensor, valid: Tensor, weights: Tensor
    ) -> None:
        """Add a micro-batch to the measures of the selection; all are (n, B, T)."""
        selected = valid & (weights > 0)
        parts = ((losses, selected), (losses, valid & ~selected), (excess, valid), (selected.float(), valid))
        sums = [(torch.where(mask, values.double(), 0.0).sum((1, 2)), mask.sum((1, 2))) for values, mask in parts]
        found = torch.stack([torch.stack([total, count.double()]) for total, count in sums], -1)
        if self._selected is None:
            self._selected = found.new_zeros(2, self.config.n_future_tokens, len(parts))
        # A curriculum may begin with less heads.
        self._selected[:, : len(losses)] += found

    def _show_selection(
        self, batch: Mapping[str, Any], losses: Tensor, valid: Tensor, weights: Tensor, step: int
    ) -> None:
        """Keep the first sequence of a step; all are (n, B, T)."""
        if self._shown_selection is None or self._shown_selection[0] != step:
            # The next token is learnt of all tokens where head 1 does not select.
            head = int(self.config.selection_first_head == "full" and len(losses) > 1)
            row = {"valid": valid[head, 0], "weight": weights[head, 0], "loss": losses[head, 0]}
            row |= {"valid": row["valid"] & (groups_by_token(batch)[0] == 0), "ids": batch["input_ids"][0]}
            self._shown_selection = step, head, row

    def _sample_selection(self) -> tuple[list[int], dict[str, Any]] | None:
        shown, self._shown_selection = self._shown_selection, None
        if shown is None:
            return None
        _, head, row = shown
        there = row["valid"]
        if not there.any():
            return None
        length = int(there.nonzero().max()) + 1
        known = there[:length].tolist()
        figures = {
            name: [value if one else None for value, one in zip(row[name][:length].tolist(), known, strict=True)]
            for name in ("weight", "loss")
        }
        return row["ids"][:length].tolist(), {"weighting": f"{RHO1}, head {head + 1}", "value": None, **figures}

    def with_reference(self, batch: dict[str, Any]) -> None:
        """Add the reference's losses to a batch whose collator did not."""
        if self._reference is not None and REFERENCE_NLL.name not in batch:
            batch[REFERENCE_NLL.name] = as_bits(self._reference(batch))

    def note_losses(self, labels: Tensor, weights: Tensor, nll: Tensor) -> None:
        """Add a micro-batch to the correlation of weights and next-token losses, and keep the step's first row.

        Args:
            labels, weights, nll: by target token, (B, T).
        """
        if self.tokens is None:
            return
        self.tokens.note_nll({"labels": labels, WEIGHTS: weights}, nll)
        self._first_nll = nll[0] if self._first_nll is None else self._first_nll

    def sample(self) -> tuple[list[int], dict[str, Any]] | None:
        """Return the first sequence of the last step, with weight, value and loss of each token; see `TokenWeights`.

        Of `rho1` the weights of the first head that selects, and its losses.
        """
        if self.tokens is None:
            return self._sample_selection()
        if self._first_nll is None:
            return None
        return self.tokens.sample(self._first_nll)

    def pop_metrics(self) -> dict[str, float]:
        """What was measured of the weights since the last call; all processes call together.

        Of `rho1` by head: mean loss of selected and of other tokens, mean excess over the reference (nats), and the
        share that is selected. Of the others see `TokenWeights.pop_metrics`.
        """
        if self.tokens is not None:
            return self.tokens.pop_metrics()
        nothing = torch.zeros(2, self.config.n_future_tokens, len(_SELECTION), dtype=torch.float64)
        sums = nothing.to(self.accelerator.device) if self._selected is None else self._selected
        self._selected = None
        totals, counts = cast(Tensor, self.accelerator.reduce(sums, "sum")).tolist()
        return {
            f"{name}_head_{head}": total / count
            for head, own in enumerate(zip(totals, counts, strict=True), start=1)
            for name, total, count in zip(_SELECTION, *own, strict=True)
            if count > 0
        }

    def save(self, folder: str | Path) -> None:
        """Write what a resumed run goes on with into a checkpoint; one process does."""
        if self.tokens is not None:
            self.tokens.save(folder)

    def load(self, folder: str | Path) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: its moving statistics are missing or damaged.
        """
        if self.tokens is not None:
            self.tokens.load(folder)


def _sized(rows: Any) -> Dataset:
    if not isinstance(rows, Dataset):
        raise UserError(
            "`value_mode: cached` and `reference_mode: cached` score a dataset with a length; use `online`."
        )
    return rows

"""TRL's RewardTrainer with exact measures on held-out rows, whose scores are kept."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from trl import RewardTrainer

from hpt_trl.data.messages import as_text
from hpt_trl.methods.held_out import HeldOutMeasures, share_of_rows
from hpt_trl.methods.padding_free import read_without_padding


class ScoringRewardTrainer(HeldOutMeasures, RewardTrainer):
    """TRL's trainer with exact measures, which keeps the scores of the held-out rows; TRL throws them away."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._scores: list[torch.Tensor] = []
        read_without_padding(self, self._reading)

    @property
    def _reading(self) -> Any:
        """The model that reads the rows."""
        return self.model

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self._scores = []
        return super().evaluate(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if not cast(nn.Module, self.model).training:
            pairs = torch.stack(outputs.logits.detach().squeeze(-1).chunk(2), dim=1)
            self._scores.append(self.accelerator.gather_for_metrics(pairs).float().cpu())
        return (loss, outputs) if return_outputs else loss

    def _held_out_count(self, inputs: dict[str, Any]) -> int:
        return len(inputs["input_ids"]) // 2

    def _held_out_row(self, values: Mapping[str, Any], inputs: dict[str, Any], row: int) -> dict[str, Any]:
        count = self._held_out_count(inputs)
        # Chosen answers first, then rejected ones; of `margin` there is one each.
        return share_of_rows(values, {2 * count: [row, count + row], count: [row]})

    def scored_rows(self) -> list[dict[str, Any]]:
        """Scores of the last evaluation, one comparison each; a completion is named by a digest of its tokens."""
        rows = cast(Any, self.eval_dataset)
        scores = torch.cat(self._scores).tolist()
        return [
            {
                "prompt": as_text(row["prompt"]),
                "chosen": chosen,
                "rejected": rejected,
                **{f"{name}_key": _digest(row[f"{name}_ids"]) for name in ("chosen", "rejected")},
            }
            for row, (chosen, rejected) in zip(rows, scores, strict=True)
        ]


def _digest(ids: list[int]) -> str:
    return hashlib.blake2b(json.dumps(ids).encode(), digest_size=8).hexdigest()

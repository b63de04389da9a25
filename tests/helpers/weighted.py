"""Training with a weight for each token, by a trainer that remembers the weights of its batches."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from hpt_trl import WeightedMTPTrainer
from hpt_trl.token_scores.weighting import TokenWeights
from tests.helpers.mtp import train as train_as
from tests.helpers.rho1 import demonstrations

LEARNING_RATE = 0.5


class WeightedTrainer(WeightedMTPTrainer):
    """Keeps what `TokenWeights` says of each micro-batch."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.seen: list[torch.Tensor] = []
        super().__init__(*args, **kwargs)
        if self.weighing is not None:
            weights: TokenWeights = self.weighing.tokens
            weigh = weights.weigh

            def keep(batches: list[dict[str, Any]], *, step: int) -> list[torch.Tensor]:
                found = weigh(batches, step=step)
                self.seen += [one.detach().clone() for one in found]
                return found

            weights.weigh = keep


def train(
    model_path: str, value_model: str | None, output_dir: str | Path, *, rows: Dataset | None = None, **settings: Any
) -> WeightedTrainer:
    """Train one step (by default) on eight rows in their order, by the next token alone; returns the trainer."""
    defaults: dict[str, Any] = {
        "n_future_tokens": 1,
        "value_model_name_or_path": value_model,
        "value_cache_dir": str(Path(output_dir) / "values"),
        "learning_rate": LEARNING_RATE,
    }
    rows = demonstrations() if rows is None else rows
    return train_as(WeightedTrainer, model_path, output_dir, dataset=rows, **(defaults | settings))

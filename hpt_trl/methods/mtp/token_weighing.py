"""Weights that are known before a step: from a value model's values, or drawn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hpt_trl.methods.mtp.config import WeightedMTPConfig
from hpt_trl.methods.mtp.weighing import Sample, Weighing
from hpt_trl.token_scores.weighting import WEIGHTS, TokenWeights


class TokenWeighing(Weighing):
    """The weights of `TokenWeights`, which are the same for all heads.

    Args:
        config: the trainer's.
        tokenizer: of the trained model.
        collator: of the training batches, which carry values where they are cached.
        accelerator: the trainer's.
        score: of a batch, the values of a value model that runs beside the training; None where none does.
    """

    def __init__(
        self,
        config: WeightedMTPConfig,
        tokenizer: PreTrainedTokenizerBase,
        collator: Any,
        accelerator: Accelerator,
        score: Callable[[dict[str, Any]], Tensor] | None = None,
    ):
        self.collator = collator
        self.tokens = TokenWeights(
            config,
            all_sum=lambda tensor: cast(Tensor, accelerator.reduce(tensor.to(accelerator.device), "sum")),
            score=score,
            decode=lambda ids: str(tokenizer.decode(ids)),
        )

    def of_step(self, batches: list[dict[str, Any]], *, step: int) -> list[Tensor]:
        return self.tokens.weigh(batches, step=step)

    def note_losses(self, labels: Tensor, weights: Tensor, nll: Tensor) -> None:
        self.tokens.note_nll({"labels": labels, WEIGHTS: weights}, nll)

    def sample(self) -> Sample | None:
        return self.tokens.sample()

    def pop_metrics(self) -> dict[str, float]:
        return self.tokens.pop_metrics()

    def save(self, folder: str | Path) -> None:
        self.tokens.save(folder)

    def load(self, folder: str | Path) -> None:
        self.tokens.load(folder)

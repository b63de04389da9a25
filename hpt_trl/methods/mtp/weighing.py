"""What gives the tokens of a multi-token training their weights, as a trainer sees it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hpt_trl.token_scores.kinds import REFERENCE_NLL, VALUES

# What a batch may carry for it, besides what the model reads.
CARRIED = (VALUES.name, REFERENCE_NLL.name)

# Token ids of a sequence, and figures of its tokens; see `TokenSamples.write`.
Sample = tuple[list[int], dict[str, Any]]


class Weighing:
    """Weights of a `WeightedMTPTrainer`'s tokens: known before a step, or once it has computed its losses.

    Attributes:
        collator: of the training batches alone.
    """

    collator: Any

    def of_step(self, batches: list[dict[str, Any]], *, step: int) -> list[Tensor] | None:
        """Weights of the micro-batches of an optimizer step, with the mean 1, by target token: (B, T) each.

        Args:
            step: optimizer steps done so far.

        Returns:
            None where the losses are needed first.

        Raises:
            UserError: a weight that is no number, with its row.
        """
        return None

    def by_losses(self, batch: Mapping[str, Any], *, step: int, max_steps: int) -> Callable[[Tensor], Tensor] | None:
        """What each head's loss of each target token is multiplied by, as a function of the losses.

        Args:
            batch: a micro-batch, with what it carries.
            step: optimizer steps done so far.
            max_steps: of the whole run.

        Returns:
            From the losses of all heads by target token, 0 where there is none, (n, B, T), to weights of that shape; or
            None where they are known beforehand.
        """
        return None

    def note_losses(self, labels: Tensor, weights: Tensor, nll: Tensor) -> None:
        """Measure weights of a micro-batch that were known beforehand beside its next-token losses.

        Args:
            labels, weights, nll: by target token, (B, T).
        """

    def sample(self) -> Sample | None:
        """The first sequence of the last step, with weight, value and loss of each token; None where it has none."""
        raise NotImplementedError

    def pop_metrics(self) -> dict[str, float]:
        """What was measured of the weights since the last call; all processes call together."""
        raise NotImplementedError

    def save(self, folder: str | Path) -> None:
        """Write what a resumed run goes on with into a checkpoint; one process does."""

    def load(self, folder: str | Path) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: what was written is missing or damaged.
        """

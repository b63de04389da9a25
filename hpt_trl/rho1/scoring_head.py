"""TRL's fused head for scoring alone, on devices without Triton.

There TRL 1.16 projects every position, labelled or not, in tiles of hundreds of megabytes that are read and written
several times. Without a backward pass a few tokens at a time will do, in memory that stays in the processor's cache.
Drop this file when upstream is as quick.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import linear
from trl.trainer import utils

# Logits that exist at a time.
_LOGITS = 2**23


@contextmanager
def scoring_head(labelled: Tensor) -> Iterator[None]:
    """Heads that run in this context compute log-probabilities, without a gradient, where there is a label.

    Args:
        labelled: (positions,), whether a position's next token has a label.
    """

    class LabelledLogProb(utils._ChunkedLogProbFunction):
        @staticmethod
        def apply(
            hidden: Tensor,
            weight: Tensor,
            bias: Tensor | None,
            targets: Tensor,
            temperature: float,
            chunk_size: int,
            softcap: float | None,
            scale: float,
            outputs: tuple[str, ...],
        ) -> tuple[Tensor | None, ...]:
            logp = hidden.new_zeros(len(targets), dtype=torch.float32)
            places = labelled.nonzero().squeeze(-1)
            for some in places.split(max(1, _LOGITS // len(weight))):
                logits = linear(hidden[some], weight, bias).float()
                # Each pass over the logits takes its time.
                if scale != 1:
                    logits.mul_(scale)
                if softcap is not None:
                    logits.div_(softcap).tanh_().mul_(softcap)
                if temperature != 1:
                    logits.div_(temperature)
                chosen = logits.gather(-1, targets[some].unsqueeze(-1)).squeeze(-1)
                most = logits.amax(-1)
                logp[some] = chosen - most - logits.sub_(most.unsqueeze(-1)).exp_().sum(-1).log()
            return logp, None, None, None, None

    names = vars(utils)
    stock = names["_ChunkedLogProbFunction"]
    if not utils._use_triton(labelled.device):
        names["_ChunkedLogProbFunction"] = LabelledLogProb
    try:
        yield
    finally:
        names["_ChunkedLogProbFunction"] = stock

"""A backward pass of TRL's fused head that computes only the tokens with a gradient.

TRL 1.16 recomputes the logits of every position in the backward pass and multiplies most of them by zero where few
tokens carry a gradient. Drop this file when upstream leaves such rows out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from trl.trainer import utils


class CompactedLogProb(utils._ChunkedLogProbFunction):
    """TRL's chunked log-probabilities; the backward pass drops the rows whose gradient is zero."""

    @staticmethod
    def backward(ctx: Any, grad_logprobs: torch.Tensor | None, grad_entropy: torch.Tensor | None, *others: Any) -> Any:
        hidden, weight, bias, targets, log_z, entropy = ctx.saved_tensors
        if grad_logprobs is None or grad_entropy is not None:
            return utils._ChunkedLogProbFunction.backward(ctx, grad_logprobs, grad_entropy, *others)
        rows = grad_logprobs.nonzero().squeeze(-1)
        kept = SimpleNamespace(
            saved_tensors=(hidden[rows], weight, bias, targets[rows], log_z[rows], entropy[rows]),
            compute_dtype=ctx.compute_dtype,
            chunk_size=ctx.chunk_size,
            kernel_args=ctx.kernel_args,
            needs_input_grad=ctx.needs_input_grad,
        )
        grad_hidden, *rest = utils._ChunkedLogProbFunction.backward(kept, grad_logprobs[rows], None, *others)
        if grad_hidden is not None:
            grad_hidden = torch.zeros_like(hidden).index_copy_(0, rows, grad_hidden)
        return grad_hidden, *rest


@contextmanager
def compacted_backward() -> Iterator[None]:
    """Heads that run in this context have the short backward pass, also where that comes later."""
    names = vars(utils)
    stock = names["_ChunkedLogProbFunction"]
    names["_ChunkedLogProbFunction"] = CompactedLogProb
    try:
        yield
    finally:
        names["_ChunkedLogProbFunction"] = stock

"""TRL's fused head without what is not needed: rows without a gradient, and scoring at the price of training.

TRL 1.16 recomputes the logits of every row in the backward pass, however many have a gradient of zero. On devices
without Triton it projects every position as well, labelled or not, in tiles of hundreds of megabytes that are read and
written several times; so are the tiles of training. Drop what upstream does as well.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from trl.kernels import ChunkedLogProbFunction
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer import utils

_NAME = "_ChunkedLogProbFunction"
# Logits that exist at a time while scoring: they stay in the processor's cache.
_LOGITS = 2**23
# Those of a tile in training, which more passes go over; and its least width, below which products become slow.
SMALL_TILE, NARROWEST_TILE = 2**21, 1024


class Compacted(ChunkedLogProbFunction):
    """TRL's chunked log-probabilities; the backward pass drops the rows whose gradient is zero."""

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, *others: Any) -> Any:
        if grad_logprobs is None or grad_entropy is not None:
            return ChunkedLogProbFunction.backward(ctx, grad_logprobs, grad_entropy, *others)
        hidden, weight, bias, targets, log_z, entropy = ctx.saved_tensors
        rows = grad_logprobs.nonzero().squeeze(-1)
        kept = SimpleNamespace(
            saved_tensors=(hidden[rows], weight, bias, targets[rows], log_z[rows], entropy[rows]),
            compute_dtype=ctx.compute_dtype,
            chunk_size=ctx.chunk_size,
            kernel_args=ctx.kernel_args,
            needs_input_grad=ctx.needs_input_grad,
        )
        grad_hidden, *rest = ChunkedLogProbFunction.backward(kept, grad_logprobs[rows], None, *others)
        if grad_hidden is not None:
            grad_hidden = torch.zeros_like(hidden).index_copy_(0, rows, grad_hidden)
        return grad_hidden, *rest


class SmallTiles(Compacted):
    """The same in tiles that stay in the processor's cache; equal up to rounding."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        *others: Any,
    ) -> Any:
        rows = max(1, min(len(hidden), TOKEN_CHUNK_SIZE))
        chunk_size = min(chunk_size, max(NARROWEST_TILE, SMALL_TILE // rows))
        return Compacted.forward(ctx, hidden, weight, bias, targets, temperature, chunk_size, *others)


def small_tiles(device: torch.device) -> AbstractContextManager[None]:
    """Heads that run in this context compute in small tiles, unless another context says otherwise.

    With Triton the stock head is as quick, and stays.
    """
    stands = vars(utils)[_NAME] in (ChunkedLogProbFunction, Compacted)
    return in_place_of_stock(SmallTiles) if stands and not utils._use_triton(device) else nullcontext()


def compacted_backward() -> AbstractContextManager[None]:
    """Heads that run in this context go back over rows with a gradient alone, also where that comes later."""
    return in_place_of_stock(Compacted)


def labelled_alone(labelled: Tensor) -> AbstractContextManager[None]:
    """Heads that run in this context compute log-probabilities alone, without a gradient, where there is a label.

    With Triton the stock head is as quick, and stays.

    Args:
        labelled: (positions,), whether a position's next token has a label.
    """
    if utils._use_triton(labelled.device):
        return nullcontext()

    class Labelled(ChunkedLogProbFunction):
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
            # A model that computes no padding gives the labelled positions alone.
            whole = len(hidden) == len(labelled)
            places = labelled.nonzero().squeeze(-1) if whole else torch.arange(len(hidden), device=hidden.device)
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

    return in_place_of_stock(Labelled)


@contextmanager
def in_place_of_stock(function: type) -> Iterator[None]:
    """While open, heads run with this function in place of TRL's kernel, which TRL looks up by name on each call."""
    names = vars(utils)
    stock = names[_NAME]
    names[_NAME] = function
    try:
        yield
    finally:
        names[_NAME] = stock

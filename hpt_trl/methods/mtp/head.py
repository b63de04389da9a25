"""Output embeddings and cross-entropy at once, where each position's weight in the loss is known beforehand.

The loss is a sum of known multiples of each position's loss. Its gradient in the logits is then known as soon as the
logits are, so that they are formed once: 3 matrix products a position in place of the 4 of TRL's kernel, which forms
them anew in the backward pass. Logits exist for one tile of rows at a time.

    L = sum_i c_i * nll_i,   dL/dz_ij = c_i * (p_ij - [j = y_i])
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from trl.kernels import chunked_logprob

# Logits that exist at a time: on a CPU they stay near its cache, on a GPU (as in TRL's kernel) they fill it.
_LOGITS_ON_CPU = 2**23
_LOGITS_ELSEWHERE = 2**27


class HeadLosses(NamedTuple):
    """Attributes:
    total: the weighted sum of all positions' losses, with a gradient.
    nll: loss of each position in nats, without a gradient.
    is_top1: whether the target is the most likely token, the first of several.
    entropy: of the distribution at each of the first `entropies` positions, in nats.
    """

    total: Float[Tensor, ""]
    nll: Float[Tensor, " positions"]
    is_top1: Bool[Tensor, " positions"]
    entropy: Float[Tensor, " entropies"]


def weighted_nll(
    hidden: Float[Tensor, "positions width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, " vocabulary"] | None,
    targets: Int[Tensor, " positions"],
    coefficients: Float[Tensor, " positions"],
    *,
    reach: int | None = None,
    entropies: int = 0,
    softcap: float | None = None,
    scale: float = 1.0,
) -> HeadLosses:
    """Sum of c_i * nll_i over positions, whose gradient is formed together with it.

    Args:
        hidden: states after the final norm.
        weight: of the output embeddings, whole.
        bias: of the output embeddings.
        targets: token that each position predicts.
        coefficients: c_i.
        reach: number of the first positions whose gradient reaches weight and bias; all of them by default. The others
            change what is below `hidden` alone.
        entropies: number of the first positions whose entropy is wanted.
        softcap: logits are capped, softcap * tanh(z / softcap).
        scale: logits are multiplied by it before.
    """
    reach = len(hidden) if reach is None else reach
    # Inside of a function autograd is off, whoever calls.
    train = torch.is_grad_enabled()
    given = (hidden, weight, bias, targets, coefficients)
    return HeadLosses(*_WeightedNLL.apply(*given, reach, entropies, softcap, scale, train))


class _WeightedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        coefficients: Tensor,
        reach: int,
        entropies: int,
        softcap: float | None,
        scale: float,
        train: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        device = hidden.device.type
        computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        exact = torch.float64 if computed == torch.float64 else torch.float32
        rows = max(1, (_LOGITS_ON_CPU if device == "cpu" else _LOGITS_ELSEWHERE) // len(weight))
        wants = [train and needed for needed in ctx.needs_input_grad[:3]]
        grad_hidden = torch.empty_like(hidden) if wants[0] else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if wants[1] else None
        grad_bias = torch.zeros_like(bias, dtype=exact) if wants[2] and bias is not None else None
        nll, entropy = hidden.new_empty(len(hidden), dtype=exact), hidden.new_empty(entropies, dtype=exact)
        is_top1 = torch.empty_like(targets, dtype=torch.bool)
        coefficients, unit = coefficients.to(exact), None
        if computed == torch.float16 and len(coefficients):
            # The small multiples of a mean over many tokens are nothing in float16.
            unit = coefficients.abs().amax().clamp(min=torch.finfo(exact).tiny)
        multiples = coefficients if unit is None else coefficients / unit
        fold = _Fold(softcap, scale, multiples, with_gradient=any(wants))
        with torch.autocast(device, enabled=False):
            states, matrix = hidden.to(computed), weight.to(computed)
            added = None if bias is None else bias.to(computed)
            for start, end in _tiles(len(hidden), rows, reach, entropies):
                part = states[start:end]
                tile = part @ matrix.t()
                if added is not None:
                    tile += added
                place = slice(start, end)
                nll[place], is_top1[place], spread = fold(tile, targets[place], place, with_entropy=start < entropies)
                if spread is not None:
                    entropy[place] = spread
                if grad_hidden is not None:
                    grad_hidden[place] = fold.gradient @ matrix
                if grad_weight is not None and start < reach:
                    _add_product(grad_weight, fold.gradient.t(), part)
                if grad_bias is not None and start < reach:
                    grad_bias += fold.gradient.sum(0, dtype=exact)
        # No saved tensors: the gradient of the weights is as large as it will be in any case, only earlier.
        ctx.formed, ctx.unit = (grad_hidden, grad_weight, grad_bias), unit
        ctx.types = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(nll, is_top1, entropy)
        ctx.set_materialize_grads(False)
        return (nll * coefficients).sum(), nll, is_top1, entropy

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, *others: Any) -> Any:
        if ctx.formed is None:
            raise RuntimeError("the gradient is formed once; a second backward pass needs a second forward pass")
        formed, ctx.formed = ctx.formed, None
        if grad_total is None:
            return (None,) * 10
        factor = grad_total if ctx.unit is None else grad_total * ctx.unit
        grads = (
            None if grad is None else grad.mul_(factor).to(dtype) for grad, dtype in zip(formed, ctx.types, strict=True)
        )
        return (*grads, *(None,) * 7)


class _Fold:
    """One tile of logits: its losses, and in `gradient` what the loss changes by with each logit."""

    def __init__(self, softcap: float | None, scale: float, coefficients: Tensor, *, with_gradient: bool):
        self.softcap, self.scale, self.coefficients = softcap, scale, coefficients
        self.with_gradient = with_gradient
        self.gradient = coefficients

    def __call__(
        self, tile: Tensor, targets: Tensor, place: slice, *, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses, whether the target is the most likely token, and entropies of a tile (rows, V), written over."""
        if chunked_logprob._use_triton(tile.device):
            return self._by_triton(tile, targets, place, with_entropy=with_entropy)
        exact = self.coefficients.dtype
        z = tile.to(exact)
        if self.scale != 1:
            z *= self.scale
        slope = None
        if self.softcap is not None:
            z.div_(self.softcap).tanh_()
            slope = 1 - z.square() if self.with_gradient else None
            z *= self.softcap
        top, best = z.max(-1)
        chosen = z.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        p = z.softmax(-1)
        # The largest probability is at least 1 / V, whose logarithm loses nothing.
        log_z = top - p.gather(-1, best.unsqueeze(-1)).squeeze(-1).log()
        entropy = log_z - (p.unsqueeze(1) @ z.unsqueeze(2)).flatten() if with_entropy else None
        if self.with_gradient:
            p.scatter_add_(-1, targets.unsqueeze(-1), p.new_full((1, 1), -1.0).expand(len(p), 1))
            p *= self.coefficients[place, None] * self.scale
            self.gradient = (p if slope is None else p.mul_(slope)).to(tile.dtype)
        return log_z - chosen, best == targets, entropy

    def _by_triton(
        self, tile: Tensor, targets: Tensor, place: slice, *, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The same by TRL's kernels, which read a tile once for its losses and once for its gradient."""
        rows, vocabulary = tile.shape
        zeros = [tile.new_zeros(rows, dtype=torch.float32) for _ in range(4)]
        lowest = [tile.new_full((rows,), float("-inf"), dtype=torch.float32) for _ in range(3)]
        sum_exp, weighted, squares, summed = zeros
        top, before, chosen = lowest
        settings = {
            "logit_scale": self.scale,
            "softcap": self.softcap or 1.0,
            "inv_t": 1.0,
            "HAS_SOFTCAP": self.softcap is not None,
            "BLOCK_SIZE": chunked_logprob._BLOCK_SIZE,
        }
        chunked_logprob._forward_kernel[(rows,)](
            tile,
            tile.stride(0),
            targets,
            top,
            sum_exp,
            weighted,
            squares,
            summed,
            before,
            chosen,
            0,
            vocabulary,
            HAS_ENTROPY=with_entropy,
            HAS_LOG_SUM_SQ_PROBS=False,
            HAS_MEAN_LOGITS=False,
            HAS_IS_TOP1=True,
            **settings,
        )
        log_z = top + sum_exp.log()
        entropy = log_z - weighted / sum_exp if with_entropy else None
        if self.with_gradient:
            # The kernel's is of the log-probabilities.
            multiples = -self.coefficients[place]
            blocks = -(-vocabulary // chunked_logprob._BLOCK_SIZE)
            chunked_logprob._backward_kernel[(rows, blocks)](
                tile,
                tile.stride(0),
                targets,
                log_z,
                log_z,
                multiples,
                log_z,
                0,
                vocabulary,
                HAS_LOGPROB_GRAD=True,
                HAS_ENTROPY_GRAD=False,
                **settings,
            )
            self.gradient = tile
        return log_z - chosen, (chosen >= top) & (chosen > before), entropy


def _tiles(positions: int, rows: int, *borders: int) -> list[tuple[int, int]]:
    """Starts and ends of tiles of at most `rows` positions, of which none goes across a border."""
    ends = sorted({positions, *(border for border in borders if 0 < border < positions)})
    tiles, start = [], 0
    for end in ends:
        tiles += [(first, min(first + rows, end)) for first in range(start, end, rows)]
        start = end
    return tiles


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in the type of `total`."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        chunked_logprob._addmm_fp32(total, left, right)

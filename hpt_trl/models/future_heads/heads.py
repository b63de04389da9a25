"""The heads themselves: copies of the last decoder layer, or one zero-initialised matrix each."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpt_trl.errors import UserError
from hpt_trl.models.decoder_parts import hidden_of
from hpt_trl.models.future_heads.trunk import LastLayer, Parts, parts_of
from hpt_trl.models.sharded_weights import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COPIES = "copy_last_layer"
RESIDUALS = "zero_residual"
KINDS = (COPIES, RESIDUALS)

# How many tokens ahead is more than anyone has trained (byte models: 32), and a slip of the pen.
MOST_TOKENS = 32


class FutureHeads(nn.Module):
    """Heads 2 to n on a shared trunk, each beside the model's own last layer, head 1 (arXiv 2404.19737, section 2).

    The final norm and the output embeddings are the model's.

    Args:
        kind: `copy_last_layer`: layers of the decoder's kind, which read the trunk as the last one does;
            `zero_residual`: x + W x on the last layer's output, with W zero at first (after Medusa, arXiv 2401.10774).
        layers: one for each head after the first.
    """

    def __init__(self, kind: str, layers: list[nn.Module]):
        super().__init__()
        self.kind = kind
        self.layers = nn.ModuleList(layers)

    @property
    def n_future_tokens(self) -> int:
        """How many tokens ahead are predicted, head 1 included."""
        return len(self.layers) + 1

    def states(
        self,
        model: "PreTrainedModel",
        seen: LastLayer,
        *,
        count: int,
        detach: bool = False,
        keep: bool = True,
        input_ids: Tensor | None = None,
    ) -> list[Tensor]:
        """The hidden states of heads 2 to `count` after the final norm, each (B, T, d).

        Args:
            model: the model under any wrapper, on whose last layer `seen` was caught.
            seen: what the last layer was called with in this forward pass.
            count: number of heads, the first included.
            detach: the heads learn by themselves: neither trunk nor norm has a gradient of theirs.
            keep: keep the heads' activations for the backward pass; else they are computed again.
            input_ids: of the forward pass, (B, T), for heads that read further tokens.
        """
        parts = parts_of(model)
        start = seen.output if self.kind == RESIDUALS else seen.hidden
        if detach:
            # Reentrant checkpointing drops what is below an input without a gradient.
            start = start.detach().requires_grad_(self.training and torch.is_grad_enabled())

        def state(layer: nn.Module, hidden: Tensor) -> Tensor:
            with _without_gradient(parts.norm) if detach else nullcontext():
                return parts.norm(self._before_norm(layer, hidden, seen))

        states = []
        for layer in list(self.layers)[: count - 1]:
            again = not keep and not getattr(layer, "gradient_checkpointing", False)
            if again and torch.is_grad_enabled():
                states.append(checkpoint(state, layer, start, use_reentrant=False))
            else:
                states.append(state(layer, start))
        return states

    def _before_norm(self, layer: nn.Module, hidden: Tensor, seen: LastLayer) -> Tensor:
        if self.kind == RESIDUALS:
            return hidden + layer(hidden)
        return hidden_of(layer(hidden, *seen.args[1:], **seen.kwargs))


def new_heads(model: "PreTrainedModel", n_future_tokens: int, kind: str = COPIES) -> FutureHeads:
    """Heads for a loaded model; copies begin with the weights of its last layer, adapters left out.

    Quantized layers are copied in the type that they compute in.

    Args:
        model: without a wrapper around it.
        n_future_tokens: how many tokens ahead are predicted, 2 or more.
        kind: one of `KINDS`.

    Raises:
        UserError: the model cannot have heads, or a number or kind that is not allowed.
    """
    check_heads(n_future_tokens, kind)
    parts = parts_of(model)
    if kind == RESIDUALS:
        width = model.config.get_text_config().hidden_size
        like = next(parameter for parameter in parts.norm.parameters())
        layers: list[nn.Module] = []
        for _ in range(n_future_tokens - 1):
            layer = nn.Linear(width, width, bias=False, device=like.device, dtype=_floating(model))
            nn.init.zeros_(layer.weight)
            layers.append(layer)
    else:
        layers = [_copy(model, parts, number) for number in range(n_future_tokens - 1)]
    return FutureHeads(kind, layers).train(model.training)


def check_heads(n_future_tokens: int, kind: str = COPIES) -> None:
    """Check number and kind.

    Raises:
        UserError: one that is not allowed.
    """
    if not 2 <= n_future_tokens <= MOST_TOKENS:
        raise UserError(f"n_future_tokens: {n_future_tokens}; allowed: 2 to {MOST_TOKENS}.")
    if kind not in KINDS:
        raise UserError(f"head_init: {kind}; allowed: {', '.join(KINDS)}.")


def _copy(model: "PreTrainedModel", parts: Parts, number: int) -> nn.Module:
    """A copy of the last layer, without adapters and quantization, for the place `number` of the heads' own cache."""
    hook = getattr(parts.layer, "_hf_hook", None)
    if hook is not None:
        raise UserError(
            "model_init_kwargs: a `device_map` spreads the model over devices, where heads cannot be put on; leave it "
            "out, and spread the weights by `--accelerate fsdp2` or `zero3`."
        )
    with whole(*parts.layer.parameters()):
        layer = copy.deepcopy(parts.layer)
        _plain(layer, _floating(model))
    for module in layer.modules():
        if isinstance(vars(module).get("layer_idx"), int):
            module.layer_idx = number  # type: ignore[assignment]
    return layer.requires_grad_(True)


def _plain(layer: nn.Module, dtype: torch.dtype) -> None:
    """Put plain linear layers in the place of adapted and quantized ones."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.integrations import dequantize_module_weight

    for name, part in list(layer.named_children()):
        child: Any = part.get_base_layer() if isinstance(part, BaseTunerLayer) else part
        if type(getattr(child, "weight", None)).__name__ in ("Params4bit", "Int8Params"):
            weight = dequantize_module_weight(child).detach().to(dtype)
            bias, source = child.bias, child
            child = nn.Linear(source.in_features, source.out_features, bias=bias is not None, device="meta")
            child.weight = nn.Parameter(weight)
            if bias is not None:
                child.bias = nn.Parameter(bias.detach().to(dtype))
        setattr(layer, name, child)
        _plain(child, dtype)


def _floating(model: Any) -> torch.dtype:
    """The type that a model computes in; of quantized weights, what they are computed in."""
    dtype = model.dtype
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


@contextmanager
def _without_gradient(module: nn.Module) -> Iterator[None]:
    """The module's own weights are constants while the context is open."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)

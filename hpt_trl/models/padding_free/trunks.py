"""A trunk that takes packed rows: without padding where it can, else by the batch that they were laid out from.

Where its rows must be padded shows at the first batch, which is computed in both ways.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hpt_trl.models.padding_free.attention import IMPLEMENTATION, ROWS, PackedRows
from hpt_trl.models.padding_free.packing import Packed, pack
from hpt_trl.models.padding_free.wrapping import wrap_forward

# Mean difference of hidden states, as a share of their mean size, that rounding may make. Models in float64 have parts
# that compute in float32. A fresh model's convolutions leak 4e-5 into the next row.
_ROUNDING, _COARSE_ROUNDING = 1e-5, 0.05
# Kinds of layers in which a row of tokens sees what its mask says and nothing else, as configs call them.
_SEEING = {"full_attention", "sliding_attention"}
# What a forward pass over packed rows has in place of those of their batch.
_OF_ROWS = ("input_ids", "attention_mask", "position_ids", ROWS)

logger = logging.getLogger(__name__)


def why_padded(model: PreTrainedModel) -> str | None:
    """Say why a model's rows have to be padded, as far as it shows without a batch; None where they need not be."""
    config = model.config
    if config.get_text_config() is not config:
        return "it reads more than text"
    if not model._can_set_attn_implementation():
        return "its attention does not take rows that lie end to end"
    if other := sorted(set(getattr(config, "layer_types", None) or ()) - _SEEING):
        return f"it has layers of the kind {other[0]}"
    if getattr(getattr(config, "quantization_config", None), "load_in_8bit", False):
        # LLM.int8() (2208.07339) computes in 16 bits the features that are large in any token of the batch.
        return "its 8-bit products go by all tokens of a batch"
    if config._attn_implementation != IMPLEMENTATION:
        return f"`attn_implementation` is {config._attn_implementation!r}, not {IMPLEMENTATION!r}"
    return None


def take_packed_rows(trunk: Any) -> None:
    """Have a trunk take packed rows, and compute padded batches as such.

    Its forward pass gives for packed rows the hidden states that they ask for, (1, asked, width), and for a padded
    batch, which is recognised by its `attention_mask`, those of all tokens, 0 in the padding.

    Args:
        trunk: a model of transformers without a head, under an adapter or not; before it is wrapped for several
            processes. One that does so already is left as it is.
    """
    trunk = trunk.get_base_model() if isinstance(trunk, PeftModel) else trunk
    if "is_padding_free" in vars(trunk):
        return
    reason = why_padded(trunk)
    if reason is not None:
        _tell(trunk, reason, logging.INFO)
    trunk.is_padding_free = False if reason else None  # None: not yet known
    wrap_forward(trunk, _forward)


def is_padding_free(trunk: Any, arguments: dict[str, Any]) -> bool:
    """Whether a trunk computes packed rows without padding; the first ones are tried.

    Args:
        arguments: of its forward pass, `packed_arguments` among them.
    """
    if trunk.is_padding_free is None:
        trunk.is_padding_free = _agrees(trunk, arguments)
    return trunk.is_padding_free


def packed_arguments(packed: Packed) -> dict[str, Any]:
    """What a trunk's forward pass takes of packed rows."""
    ids = packed.rows.batch["input_ids"].flatten()[packed.source].unsqueeze(0)
    return {
        "input_ids": ids,
        # A mask of four dimensions is taken as it is, so that none is made; attention goes by the rows.
        "attention_mask": ids.new_ones(1, 1, 1, 1, dtype=torch.bool),
        "position_ids": packed.position_ids,
        ROWS: packed.rows,
    }


def _forward(trunk: Any, padded_forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    rows: PackedRows | None = kwargs.get(ROWS)
    if rows is not None:
        return _of_rows(trunk, rows, kwargs)
    given = {name: value for name, value in kwargs.items() if value is not None}
    if len(args) == 1 and "input_ids" not in kwargs:  # as heads of classifiers ask
        return trunk.forward(input_ids=args[0], **kwargs)
    mask, told = given.get("attention_mask"), {"input_ids", "attention_mask", "use_cache", "return_dict"}
    if args or given.get("use_cache") or not given.keys() <= told:
        return padded_forward(*args, **kwargs)
    if trunk.is_padding_free is False or not isinstance(mask, Tensor) or mask.ndim != 2:
        return padded_forward(**kwargs)
    packed = pack(given["input_ids"], mask, mask.bool())
    # Where weights are spread all processes try their first batch together, also one of which nothing can be left out.
    if trunk.is_padding_free is not None and len(packed.source) == mask.numel():
        return padded_forward(**kwargs)
    arguments = packed_arguments(packed) | {"use_cache": False}
    if not is_padding_free(trunk, arguments):
        return padded_forward(**kwargs)
    output = _of_rows(trunk, packed.rows, arguments)
    output.last_hidden_state = packed.rows.spread(output.last_hidden_state)
    return output


def _of_rows(trunk: Any, rows: PackedRows, kwargs: dict[str, Any]) -> Any:
    """The hidden states that packed rows ask for."""
    if is_padding_free(trunk, kwargs):
        output = trunk.padded_forward(**kwargs)
        output.last_hidden_state = output.last_hidden_state.index_select(1, rows.kept)
    else:
        output = _of_batch(trunk, rows, kwargs)
        output.last_hidden_state = output.last_hidden_state[rows.asked].unsqueeze(0)
    return output


def _of_batch(trunk: Any, rows: PackedRows, kwargs: dict[str, Any]) -> Any:
    """The same forward pass over the batch that the rows were laid out from."""
    others = {name: value for name, value in kwargs.items() if name not in _OF_ROWS}
    return trunk.padded_forward(**rows.batch, **others)


@torch.no_grad()
def _agrees(trunk: Any, arguments: dict[str, Any]) -> bool:
    """Whether a trunk finds in packed rows what it finds in their batch; a warning where it does not."""
    rows: PackedRows = arguments[ROWS]
    devices = {parameter.device for parameter in trunk.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), _without_dropout(trunk):
        padded = _of_batch(trunk, rows, arguments).last_hidden_state[rows.asked]
        try:
            output = trunk.padded_forward(**arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            _tell(trunk, f"it takes no rows that lie end to end ({str(error).splitlines()[0]})", logging.WARNING)
            return False
    found = output.last_hidden_state[0, rows.kept]
    differs = float((found.float() - padded.float()).abs().mean() / padded.float().abs().mean().clamp(min=1e-12))
    if differs <= (_COARSE_ROUNDING if _rounds_coarsely(trunk, padded) else _ROUNDING):
        return True
    _tell(trunk, f"end to end its hidden states differ by {differs:.2g} of their size", logging.WARNING)
    return False


def _rounds_coarsely(trunk: Any, hidden: Tensor) -> bool:
    """Whether products have fewer digits than float32; those of quantized weights may, whatever they are given in."""
    if getattr(trunk.config, "quantization_config", None) is not None or hidden.dtype.itemsize < 4:
        return True
    tf32 = hidden.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return tf32 or torch.is_autocast_enabled(hidden.device.type)


def _tell(trunk: Any, reason: str, level: int) -> None:
    logger.log(level, "%s computes the padding of its rows: %s.", type(trunk).__name__, reason)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """While open, nothing of a model is drawn by chance; what is not stays in the mode that it is in."""
    modules: list[Any] = list(model.modules())
    noisy = [m for m in modules if isinstance(m, nn.Dropout) or getattr(m, "attention_dropout", None)]
    before = [module.training for module in noisy]
    for module in noisy:
        module.training = False
    try:
        yield
    finally:
        for module, training in zip(noisy, before, strict=True):
            module.training = training

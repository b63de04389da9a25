"""A trunk that takes packed rows: without padding where it can, else by the batch that they were laid out from.

Where its rows must be padded shows at the first batch: a few rows of random tokens, the same in every process and
whatever the batch, are computed in both ways.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hpt_trl.models.adapters import base_of
from hpt_trl.models.dropout import is_noisy, without_dropout
from hpt_trl.models.padding_free.attention import IMPLEMENTATION, ROWS, PackedRows
from hpt_trl.models.padding_free.packing import Packed, pack
from hpt_trl.models.padding_free.wrapping import wrap_forward

# Mean difference of hidden states, as a share of their mean size, that rounding may make. Models in float64 have parts
# that compute in float32. A fresh model's convolutions leak 4e-5 into the next row.
_ROUNDING, _COARSE_ROUNDING = 1e-5, 0.05
# Kinds of layers in which a row of tokens sees what its mask says and nothing else, as configs call them.
_SEEING = {"full_attention", "sliding_attention"}
# Of the rows that are tried: tokens, and those with which the last begins as the first does.
_LENGTHS, _ALIKE = (16, 9, 12, 16), 7
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
    trunk = base_of(trunk)
    if "is_padding_free" in vars(trunk):
        return
    reason = why_padded(trunk)
    if reason is not None:
        _tell(trunk, reason, logging.INFO)
    trunk.is_padding_free = False if reason else None  # None: not yet known
    trunk.counts_padding = False
    wrap_forward(trunk, _forward)


def leave_padded(trunk: Any, reason: str) -> None:
    """Say of a trunk that is left as it is that its rows are padded."""
    if "is_padding_free" not in vars(trunk):
        _tell(trunk, reason, logging.INFO)
        trunk.is_padding_free = False


def try_packed_rows(trunk: Any, device: torch.device) -> bool:
    """Whether a trunk can compute rows without padding; at first it is tried, with a warning where it cannot."""
    if trunk.is_padding_free is None:
        _try(trunk, device)
    return trunk.is_padding_free


def is_padding_free(trunk: Any, rows: PackedRows) -> bool:
    """Whether a trunk computes these rows without padding."""
    if not try_packed_rows(trunk, rows.kept.device):
        return False
    mask = rows.batch.get("attention_mask")
    return not trunk.counts_padding or mask is None or bool(mask[:, 0].all())


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
    packed = pack(given["input_ids"], mask, mask.bool(), shared=not is_noisy(trunk))
    # Where weights are spread all processes try their first batch together, also one of which nothing can be left out.
    if trunk.is_padding_free is not None and len(packed.source) == mask.numel():
        return padded_forward(**kwargs)
    arguments = packed_arguments(packed) | {"use_cache": False}
    if not is_padding_free(trunk, packed.rows):
        return padded_forward(**kwargs)
    output = _of_rows(trunk, packed.rows, arguments)
    output.last_hidden_state = packed.rows.spread(output.last_hidden_state)
    return output


def _of_rows(trunk: Any, rows: PackedRows, kwargs: dict[str, Any]) -> Any:
    """The hidden states that packed rows ask for."""
    if is_padding_free(trunk, rows):
        output = trunk.padded_forward(**kwargs)
        output.last_hidden_state = output.last_hidden_state.index_select(1, rows.kept)
    else:
        others = {name: value for name, value in kwargs.items() if name not in _OF_ROWS}
        output = trunk.padded_forward(**rows.batch, **others)
        output.last_hidden_state = output.last_hidden_state[rows.asked].unsqueeze(0)
    return output


@torch.no_grad()
def _try(trunk: Any, device: torch.device) -> None:
    """Find out whether a trunk finds in packed rows what it finds in a batch, padded on the right and on the left."""
    devices = {parameter.device for parameter in trunk.parameters() if parameter.device.type == "cuda"}
    differs = {}
    with torch.random.fork_rng(devices=list(devices)), without_dropout(trunk):
        for left in (False, True):
            ids, mask = _rows_to_try(trunk.config.vocab_size, left=left)
            packed = pack(ids.to(device), mask.to(device), mask.to(device).bool())
            packed.rows.are_tried = True
            padded = trunk.padded_forward(**packed.rows.batch, use_cache=False).last_hidden_state[packed.rows.asked]
            try:
                output = trunk.padded_forward(**packed_arguments(packed), use_cache=False)
            except (TypeError, ValueError, RuntimeError) as error:
                reason = f"it takes no rows that lie end to end ({str(error).splitlines()[0]})"
                _tell(trunk, reason, logging.WARNING)
                trunk.is_padding_free = False
                return
            found = output.last_hidden_state[0, packed.rows.kept].float()
            size = padded.float().abs().mean().clamp(min=1e-12)
            differs[left] = float((found - padded.float()).abs().mean() / size)
    allowed = _COARSE_ROUNDING if _rounds_coarsely(trunk, padded) else _ROUNDING
    trunk.is_padding_free = differs[False] <= allowed
    # Positions are then those of the batch, also of tokens behind its padding.
    trunk.counts_padding = differs[True] > allowed
    if not trunk.is_padding_free:
        _tell(trunk, f"end to end its hidden states differ by {differs[False]:.2g} of their size", logging.WARNING)


def _rows_to_try(vocabulary: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """A batch of rows of unlike lengths, padded on one side, and its mask."""
    width, lengths = max(_LENGTHS), torch.tensor(_LENGTHS)[:, None]
    ids = torch.randint(vocabulary, (len(_LENGTHS), width), generator=torch.Generator().manual_seed(0))
    ids[-1, :_ALIKE] = ids[0, :_ALIKE]
    mask = torch.arange(width) < lengths
    if left:
        mask = mask.flip(1)
        ids = torch.stack([row.roll(width - length) for row, length in zip(ids, _LENGTHS, strict=True)])
    return ids, mask.long()


def _rounds_coarsely(trunk: Any, hidden: Tensor) -> bool:
    """Whether products have fewer digits than float32; those of quantized weights may, whatever they are given in."""
    if getattr(trunk.config, "quantization_config", None) is not None or hidden.dtype.itemsize < 4:
        return True
    tf32 = hidden.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return tf32 or torch.is_autocast_enabled(hidden.device.type)


def _tell(trunk: Any, reason: str, level: int) -> None:
    logger.log(level, "%s computes the padding of its rows: %s.", type(trunk).__name__, reason)

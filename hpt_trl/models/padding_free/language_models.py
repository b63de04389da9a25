"""A language model under TRL's fused head that takes a padded batch, computes it without padding, and gives back log-
probabilities in the batch's layout.

Who calls the model knows nothing of it: TRL's trainers, their reference models, a critic that hangs on the trunk. The
head is asked about the tokens that have a label alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hpt_trl.models.adapters import base_of
from hpt_trl.models.dropout import is_noisy
from hpt_trl.models.fused_head import small_tiles
from hpt_trl.models.padding_free.packing import Packed, laid_out, pack
from hpt_trl.models.padding_free.trunks import (
    is_padding_free,
    leave_padded,
    packed_arguments,
    take_packed_rows,
    try_packed_rows,
)
from hpt_trl.models.padding_free.wrapping import wrap_forward

# Arguments of a forward pass that mean the same for packed rows.
_OF_TRUNK = {"use_cache", "output_router_logits", "return_dict"}
_PASSED = {*_OF_TRUNK, "num_items_in_batch"}
# Where TRL's collator says once more how rows lie end to end, for kernels that are not used.
_BOUNDARIES = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}


def pad_no_more(model: torch.nn.Module) -> None:
    """Have a language model compute its log-probabilities without padding.

    A model that reads more than text is left as it is. One that cannot do without padding says so, at its first batch
    at the latest, and computes it.

    Args:
        model: with TRL's fused head on it, under an adapter or not; before it is wrapped for several processes.
    """
    base = base_of(model)
    if base.config.get_text_config() is not base.config:
        leave_padded(base.base_model, "it reads more than text")
        return
    take_packed_rows(base.base_model)
    wrap_forward(base, _forward)


def _forward(model: Any, padded_forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    given = {name: value for name, value in kwargs.items() if value is not None}
    packed = None if args else _packed(model, given)
    if packed is None:
        return padded_forward(*args, **kwargs)
    rows, passed = packed.rows, {name: value for name, value in given.items() if name in _PASSED}
    arguments = packed_arguments(packed) | {name: value for name, value in passed.items() if name in _OF_TRUNK}
    if _is_balanced(model, given):
        # A load-balancing loss goes by the mask: that of the batch, or none.
        arguments["attention_mask"] = None
        if not is_padding_free(model.base_model, rows):
            return padded_forward(**kwargs)
    with small_tiles(given["input_ids"].device):
        output = padded_forward(
            **arguments | passed,
            shift_labels=given["labels"].roll(-1, dims=1)[rows.asked].unsqueeze(0),
            fused_lm_head=True,
        )
    for name, value in list(output.items()):
        if isinstance(value, Tensor) and value.ndim == 2:
            setattr(output, name, rows.spread(value)[:, :-1])
    return output


def _is_balanced(model: Any, given: dict[str, Any]) -> bool:
    return bool(given.get("output_router_logits") or getattr(model.config, "output_router_logits", False))


def _packed(model: Any, given: dict[str, Any]) -> Packed | None:
    """The rows of a batch; None of a batch that holds, or asks for, something else, or of which nothing is asked."""
    if not given.get("fused_lm_head") or not {"input_ids", "labels"} <= given.keys():
        return None
    ids, labels = given["input_ids"], given["labels"]
    asked = torch.zeros_like(labels, dtype=torch.bool)
    asked[:, :-1] = labels[:, 1:] != -100
    others = given.keys() - {"input_ids", "labels", "fused_lm_head"} - _PASSED
    if others == {"attention_mask"} and given["attention_mask"].shape == ids.shape:
        used = given["attention_mask"].bool()
        # A load-balancing loss counts each token of each row.
        whole = _is_balanced(model, given)
        lay = partial(pack, ids, given["attention_mask"], whole=whole, shared=not is_noisy(model))
    elif "position_ids" in others and others - {"position_ids"} <= _BOUNDARIES and len(ids) == 1:
        used, lay = torch.ones_like(asked), partial(laid_out, ids, given["position_ids"])
    else:
        return None
    if (asked & used).any():
        return lay(asked=asked)
    # Where weights are spread all processes try their first batch together, also one without a label.
    try_packed_rows(model.base_model, ids.device)
    return None

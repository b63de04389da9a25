"""Copies of parts of a model that are trained beside it, over the same frozen weights."""

import copy
from typing import Any, TypeVar

from torch import nn

from hpt_trl.models.dropout import leave_dropout_out

Part = TypeVar("Part", bound=nn.Module)


def twin(part: Part) -> Part:
    """A copy whose trained weights are its own; those that are frozen, as an adapter's base is, are the model's.

    It has no dropout: what it says of a position is to be the same each time it is asked.
    """
    shared: dict[int, Any] = {id(weight): weight for weight in part.parameters() if not weight.requires_grad}
    for module in part.modules():
        shared |= {id(state): state for state in _quantization_states(module)}
    copied = copy.deepcopy(part, shared)
    leave_dropout_out(copied)
    return copied


def _quantization_states(module: nn.Module) -> list[Any]:
    """What bitsandbytes keeps of a quantized weight beside it: scales, and in 8 bits the weight itself once more."""
    if not type(module).__module__.startswith("bitsandbytes."):
        return []
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    if isinstance(module, Linear4bit):
        return [module.quant_state]
    return [module.state] if isinstance(module, Linear8bitLt) else []

"""Weights that FSDP or DeepSpeed spread over the processes, and models that are to stay whole beside them."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.distributed.tensor import DTensor


@contextmanager
def whole_weights() -> Iterator[None]:
    """Load each process its own copy, as of a model that is not trained.

    Under ZeRO-3 `from_pretrained` would spread it, under FSDP leave all processes but the first without weights.
    """
    from transformers.integrations import deepspeed

    reference = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    first_only = os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = reference
        if first_only is not None:
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = first_only


def local_part(parameter: torch.nn.Parameter) -> torch.Tensor:
    """What this process holds of a parameter: all of it, its shard (FSDP 2), or its partition (ZeRO-3)."""
    tensor: Any = getattr(parameter, "ds_tensor", parameter)
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def whole(*weights: Any, written: bool = False) -> AbstractContextManager[None]:
    """Weights that ZeRO-3 may have spread over the processes, whole while the context is open.

    Args:
        written: what the first process writes into them is kept; else they are to be read.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(weights), modifier_rank=0 if written else None)


def reshard(model: torch.nn.Module) -> None:
    """Under FSDP 2 give back what the last forward pass has gathered: what is written into a weight is then kept."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def add_to(parameter: torch.nn.Parameter, amount: float) -> None:
    """Add a number to a weight wherever it lies in a training: whole, spread, or once more in DeepSpeed's optimizer.

    Args:
        parameter: under FSDP 2 after `reshard`.
    """
    from transformers.integrations.deepspeed import deepspeed_config, is_deepspeed_zero3_enabled

    given: Any = parameter
    if is_deepspeed_zero3_enabled():
        import deepspeed

        with torch.no_grad(), deepspeed.zero.GatheredParameters([given], modifier_rank=0):
            given.data.add_(amount)
        # The setter of whole weights does not know those of fewer elements than processes.
        local = deepspeed.utils.safe_get_local_fp32_param(given)
        deepspeed.utils.safe_set_local_fp32_param(given, local + amount)
        return
    with torch.no_grad():
        given.add_(amount)
    if deepspeed_config() is not None:
        from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

        safe_set_full_fp32_param(given, safe_get_full_fp32_param(given) + amount)


def spare_from_gathering(model: Any) -> None:
    """Tell TRL's fused head that the weights of a model of `whole_weights` are there.

    Under ZeRO-3 it asks every head's weights where they are, also those that were never spread.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        for weight in model.get_output_embeddings().parameters():
            weight.ds_status = ZeroParamStatus.AVAILABLE

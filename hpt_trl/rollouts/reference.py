"""The reference of a KL term: the policy as it was passed, frozen.

TRL 1.16 reads its reference from the folder that the config of the policy names: other weights, where a model was
passed whose weights had changed since.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer import grpo_trainer


def frozen_copy(policy: Any) -> Any:
    """A copy of a model that is neither trained nor noisy.

    Raises:
        ValueError: ZeRO-3 has spread its weights over the processes.
    """
    if is_deepspeed_zero3_enabled():
        raise ValueError("ZeRO-3 spreads the weights of `model`, which cannot be copied; pass its name or folder.")
    return copy.deepcopy(policy).eval().requires_grad_(False)


def add_frozen_adapter(policy: Any, name: str) -> None:
    """Gives a model with an adapter a frozen copy of it."""
    active = policy.active_adapter
    policy.add_adapter(name, policy.peft_config[active])
    for parameter_name, value in policy.named_parameters():
        if f".{active}." in parameter_name:
            copied = policy.get_parameter(parameter_name.replace(f".{active}.", f".{name}."))
            copied.requires_grad_(False).copy_(value.detach())


def prepared(reference: Any, accelerator: Accelerator, *, deepspeed: bool, fsdp: bool) -> Any:
    """A reference as the processes of a run need it."""
    if deepspeed:
        return prepare_deepspeed(reference, accelerator)
    if fsdp:
        return prepare_fsdp(reference, accelerator)
    return accelerator.prepare_model(reference, evaluation_mode=True)


@contextmanager
def passed_as_reference(model: Any, config: Any) -> Iterator[None]:
    """While open, TRL takes a copy of the model that was passed; around the constructor of a `GRPOTrainer`.

    A name is left to TRL, and so is a model with an adapter, which TRL switches off, or copies.

    Raises:
        ValueError: ZeRO-3 has spread the weights of the model.
    """
    if config is None or config.beta == 0 or not isinstance(model, PreTrainedModel):
        yield
        return
    names = vars(grpo_trainer)
    before = names["create_model_from_path"]
    # The policy is there already: the only model that is still to be made is the reference.
    names["create_model_from_path"] = lambda *_, **__: frozen_copy(model)
    try:
        yield
    finally:
        names["create_model_from_path"] = before

"""The reference of a KL term: the policy as it was passed, frozen.

TRL 1.16 reads its reference from the folder that the config of the policy names: other weights, where a model was
passed whose weights had changed since. And a reference that moves with the policy (`sync_ref_model`) is in none of its
checkpoints.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer import grpo_trainer

from hpt_trl.errors import UserError

# A reference that has moved, in a checkpoint.
REFERENCE_FILE = "reference_model.safetensors"


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


def refuse_lost_reference(config: Any, *, fsdp: bool) -> None:
    """Find a moving reference that no checkpoint could hold.

    Raises:
        ValueError: its weights are spread over the processes.
    """
    if config.sync_ref_model and config.save_strategy != "no" and (fsdp or is_deepspeed_zero3_enabled()):
        raise ValueError(
            "`sync_ref_model` is true under FSDP or ZeRO-3: the reference's weights are spread over the processes and "
            "would be missing from checkpoints, so that a resumed run goes another way. Set `save_strategy: no`, or "
            "`sync_ref_model: false`."
        )


def save_reference(reference: Any, folder: str) -> None:
    """Writes a reference that has moved into a checkpoint."""
    save_model(reference, str(Path(folder) / REFERENCE_FILE))


def load_reference(reference: Any, folder: str) -> None:
    """Takes a reference out of a checkpoint.

    Raises:
        UserError: it has none.
    """
    file = Path(folder) / REFERENCE_FILE
    if not file.is_file():
        raise UserError(
            f"{folder}: `sync_ref_model` is true, but the checkpoint has no {REFERENCE_FILE}: the run that wrote it "
            "did not keep its reference. Resume with `sync_ref_model: false`, or begin anew."
        )
    load_model(reference, str(file))

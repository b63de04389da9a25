"""The reference of PPO's KL term: the policy as it was passed."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head, create_model_from_path, use_adapter

from hpt_trl.models.padding_free.language_models import pad_no_more
from hpt_trl.models.padding_free.settings import pads_no_more
from hpt_trl.rollouts.reference import add_frozen_adapter, frozen_copy, prepared

# Name of the frozen copy of an adapter that was passed.
REFERENCE_ADAPTER = "reference"


class Reference:
    """What was passed: a frozen copy, or the policy itself without the adapter that is trained.

    The base rebuilds its reference from the config's name; ours are the weights that were passed.

    Attributes:
        model: a model of its own; None where the policy with another adapter is asked.

    Args:
        trainer: whose policy is loaded already.
        passed: what it was made of.
        passed_adapter: that had an adapter.
    """

    def __init__(self, trainer: GRPOTrainer, passed: "str | PreTrainedModel", passed_adapter: bool):
        policy: Any = trainer.model
        self.model: Any = None
        self._adapter: str | None = None
        if passed_adapter:
            # What was passed is base model and adapter; disabling the adapter would take a part of it away.
            add_frozen_adapter(policy, REFERENCE_ADAPTER)
            self._adapter = REFERENCE_ADAPTER
        elif not isinstance(policy, PeftModel):
            # ZeRO-3 has spread the policy's weights over the processes: they are read from the same files once more.
            spread = is_deepspeed_zero3_enabled() and isinstance(passed, str)
            reference = _read(trainer, str(passed)) if spread else frozen_copy(policy)
            self.model = prepared(
                reference, trainer.accelerator, deepspeed=trainer.is_deepspeed_enabled, fsdp=trainer.is_fsdp_enabled
            )

    def asked(self, policy: Any) -> AbstractContextManager[Any]:
        """While open, the reference is asked: `model`, or the policy, which is no other without it."""
        return nullcontext() if self.model else use_adapter(policy, adapter_name=self._adapter)


def _read(trainer: GRPOTrainer, name: str) -> PreTrainedModel:
    args: Any = trainer.args
    policy: Any = trainer.model
    settings: dict[str, Any] = {"dtype": policy.dtype, "trust_remote_code": args.trust_remote_code}
    settings |= {"device_map": None, **(args.model_init_kwargs or {})}
    reference = create_model_from_path(name, **settings)
    add_fused_lm_head(reference, temperature=trainer.temperature, cast_lm_head_to_fp32=args.cast_lm_head_to_fp32)
    if pads_no_more(args):
        pad_no_more(reference)
    return reference.eval().requires_grad_(False)

"""Two faults of accelerate's FSDP2 (1.15), mended in one place; drop each when accelerate has.

Outputs of a model come in the type that the model computed them in. Accelerate gives FSDP2 a policy that casts whatever
the whole model returns to the training's half precision: with `bf16: true` a log-probability of -12.3 becomes -12.3125,
two mean values of 2.5048 and 2.5020 are equal, and a loss is rounded to three digits, where one process or DDP keeps
float32.

The head is gathered with the norm before it. Accelerate shards both together, by which TRL's fused head, which reads
the head's weight without calling it, finds it whole. The norm it looks for among the direct children of the base model,
where a vision-language model has none: the head is then left in pieces, TRL gathers it itself, and each process keeps
the gradient of its own rows as that of all for its piece.
"""

import dataclasses
import functools
from typing import Any

from hpt_trl.errors import UserError


@functools.cache
def mend_fsdp2() -> None:
    """Mend accelerate's FSDP2; to be called before a trainer is made.

    Weights and gradients travel as before, and layers hand on what they compute. A policy that somebody passes by
    himself stays as it is.
    """
    _keep_float32_outputs()
    _find_nested_norms()


def _keep_float32_outputs() -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin

    choose = FullyShardedDataParallelPlugin.set_mixed_precision

    @functools.wraps(choose)
    def without_cast(self: Any, *args: Any, **kwargs: Any) -> None:
        given = None if isinstance(self.mixed_precision_policy, str) else self.mixed_precision_policy
        choose(self, *args, **kwargs)
        if self.fsdp_version == 2 and (given is None or kwargs.get("override")):
            self.mixed_precision_policy = dataclasses.replace(self.mixed_precision_policy, output_dtype=None)

    FullyShardedDataParallelPlugin.set_mixed_precision = without_cast


def _find_nested_norms() -> None:
    from accelerate.utils import fsdp_utils

    # Releases before this one shard the head with the whole model.
    find = vars(fsdp_utils).get("_find_final_norm")
    if find is None:
        return

    @functools.wraps(find)
    def found(model: Any) -> Any:
        norm = find(model)
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if norm is not None or head is None or not head.weight.requires_grad:
            return norm
        if head.weight is model.get_input_embeddings().weight:
            return norm
        norms = [part for part in model.get_decoder().children() if "Norm" in type(part).__name__]
        if not norms:
            raise UserError(
                f"FSDP2 cannot train the head of {type(model).__name__}, which shares no weights and follows no norm "
                "that accelerate would gather with it. Launch it with `--accelerate zero3`, or on one process."
            )
        return norms[-1]

    fsdp_utils._find_final_norm = found

"""Outputs of a model under FSDP2 in the type that the model computed them in.

Accelerate 1.15 gives FSDP2 a policy that casts whatever the whole model returns to the training's half precision: with
`bf16: true` a log-probability of -12.3 becomes -12.3125, two mean values of 2.5048 and 2.5020 are equal, and a loss is
rounded to three digits, where one process or DDP keeps float32. Drop this file when accelerate leaves outputs alone.
"""

import dataclasses
import functools
from typing import Any


@functools.cache
def keep_float32_outputs() -> None:
    """Let accelerate's FSDP2 policies cast no outputs; to be called before a trainer is made.

    Weights and gradients travel as before, and layers hand on what they compute. A policy that somebody passes by
    himself stays as it is.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin

    choose = FullyShardedDataParallelPlugin.set_mixed_precision

    @functools.wraps(choose)
    def without_cast(self: Any, *args: Any, **kwargs: Any) -> None:
        given = None if isinstance(self.mixed_precision_policy, str) else self.mixed_precision_policy
        choose(self, *args, **kwargs)
        if self.fsdp_version == 2 and (given is None or kwargs.get("override")):
            self.mixed_precision_policy = dataclasses.replace(self.mixed_precision_policy, output_dtype=None)

    FullyShardedDataParallelPlugin.set_mixed_precision = without_cast

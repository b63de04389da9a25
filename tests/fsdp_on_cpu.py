"""`python -m hpt_trl` in a process of `accelerate launch`, on a machine without GPU, with FSDP over gloo.

Accelerate takes FSDP for accelerators only and would silently train by DDP here; PyTorch itself has no such limit.
"""

import functools
import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from hpt_trl.cli import main

_initialise = AcceleratorState.__init__


@functools.wraps(_initialise)
def _with_fsdp(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    _initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        # What accelerate does for each of its accelerators.
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = _with_fsdp
    code = main()
    assert code or AcceleratorState().is_fsdp2, "the run was not sharded"
    sys.exit(code)

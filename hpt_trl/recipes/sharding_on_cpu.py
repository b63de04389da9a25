"""FSDP and DeepSpeed over gloo on a machine without accelerator.

Accelerate 1.15 shards on accelerators only: on a CPU it trains a copy in each process instead (FSDP), or one process
alone (DeepSpeed), and says nothing. PyTorch and DeepSpeed have no such limit, so a sharded profile can be tried, and is
tested here, without a GPU. Drop this file when accelerate shards on CPUs.
"""

import functools
import importlib
import os
from typing import Any


def launched_sharded() -> bool:
    """Whether this process was started by a launcher that asked for FSDP or DeepSpeed."""
    asked = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return any(os.environ.get(name, "false").lower() == "true" for name in asked)


@functools.cache
def shard_on_cpu() -> None:
    """Let accelerate shard over CPU processes; to be called before its state, or a trainer's config, is made."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    # DeepSpeed would look for a GPU's tools otherwise.
    os.environ["DS_ACCELERATOR"] = "cpu"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        _leave_inference_uncompiled()
    # Processes of one machine divide its cores; accelerate does so only where it knows that it runs on CPUs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    choose_backend, initialise = PartialState._prepare_backend, AcceleratorState.__init__

    @functools.wraps(choose_backend)
    def with_gloo(self: Any, *args: Any, **kwargs: Any) -> Any:
        backend, kind = choose_backend(self, *args, **kwargs)
        return ("gloo", DistributedType.MULTI_CPU) if backend is None else (backend, kind)

    @functools.wraps(initialise)
    def with_fsdp(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            # What accelerate does for each of its accelerators.
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    PartialState._prepare_backend = with_gloo
    AcceleratorState.__init__ = with_fsdp


def _leave_inference_uncompiled() -> None:
    """Spare a run the all-reduce that DeepSpeed compiles on a CPU before anything else, a minute of one core.

    Only its inference calls it. A run that is killed meanwhile leaves a lock in the user's cache, for which each later
    run would wait without end.
    """
    # By its name: the package's attribute `torch` is PyTorch.
    backend: Any = importlib.import_module("deepspeed.comm.torch")
    backend.build_shm_op = lambda: None

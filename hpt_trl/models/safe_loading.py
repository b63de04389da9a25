"""DeepSpeed's checkpoints without running what they hold: it unpickles them freely where transformers does not."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hpt_trl.errors import UserError


@contextmanager
def deepspeed_loads_weights_only() -> Iterator[None]:
    """While open, DeepSpeed reads tensors, plain values and the few classes of its own that it saves."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    known = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
    stock = TorchCheckpointEngine.load

    def load(self: Any, path: str, map_location: Any = None) -> Any:
        try:
            with torch.serialization.safe_globals(known):
                return torch.load(path, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} holds more than tensors and DeepSpeed's own settings, and is not loaded, as that would run "
                f"it: {str(error).splitlines()[0]}"
            ) from error

    TorchCheckpointEngine.load = load
    try:
        yield
    finally:
        TorchCheckpointEngine.load = stock

"""DeepSpeed's files: what it saves is read, what would run is not."""

import os

import pytest
import torch

from hpt_trl.errors import UserError
from hpt_trl.models.safe_loading import deepspeed_loads_weights_only

pytest.importorskip("deepspeed")


class Running:
    """What runs a command where it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_what_would_run_is_not_loaded(tmp_path):
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    engine, stock = TorchCheckpointEngine(), TorchCheckpointEngine.load
    saved = {"weights": torch.ones(3), "scaler": LossScaler(scale=2.0), "stage": ZeroStageEnum.weights}
    torch.save(saved, tmp_path / "whole.pt")
    torch.save({"weights": Running(f"touch {tmp_path}/ran")}, tmp_path / "evil.pt")
    with deepspeed_loads_weights_only():
        found = engine.load(str(tmp_path / "whole.pt"))
        assert torch.equal(found["weights"], torch.ones(3)) and found["scaler"].cur_scale == 2.0
        assert found["stage"] == ZeroStageEnum.weights
        with pytest.raises(UserError, match=r"evil\.pt holds more than tensors"):
            engine.load(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "ran").exists() and TorchCheckpointEngine.load is stock

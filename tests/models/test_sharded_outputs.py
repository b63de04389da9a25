"""What a model under FSDP2 returns, in one process that shards over gloo, with and without the file's mend."""

import json
import os
import subprocess
import sys

from tests.helpers.processes import ROOT, free_port

# A value model, as accelerate shards one: its policy on layers and on the whole.
PROGRAM = """
import json, sys, torch, torch.distributed
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import fully_shard
from hpt_trl.models.sharded_outputs import keep_float32_outputs
from hpt_trl.models.value_model import load_value_model

torch.distributed.init_process_group("gloo", rank=0, world_size=1)
ids = torch.arange(40).view(2, 20)
mask = torch.ones_like(ids, dtype=torch.bool)


def values(mended):
    if mended:
        keep_float32_outputs()
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    policy = plugin.mixed_precision_policy
    model = load_value_model(sys.argv[1], trainable=False)
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    for layer in model.trunk.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    found = model(ids, output_mask=mask)
    half = policy.param_dtype == torch.bfloat16
    return [half, str(found.logits.dtype), found.token_values.float().flatten().tolist()]


plain = load_value_model(sys.argv[1], trainable=False)(ids, output_mask=mask).token_values.flatten().tolist()
print(json.dumps([plain, values(False), values(True)]))
torch.distributed.destroy_process_group()
"""


def test_values_are_not_rounded_on_their_way_out(tmp_path, tiny_model_path):
    import torch

    from tests.helpers.value_models import save_value_model

    folder = save_value_model(tiny_model_path, tmp_path / "critic", scale=0.5)
    environment = os.environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    plain, (half, stock_type, stock), (still_half, type_, ours) = json.loads(done.stdout.splitlines()[-1])
    assert half and still_half
    # The fault: when this fails, accelerate leaves outputs alone, and the file can be dropped.
    assert stock_type == "torch.bfloat16" and stock == torch.tensor(stock).bfloat16().tolist()
    assert type_ == "torch.float32" and ours != torch.tensor(ours).bfloat16().tolist()
    spread = torch.tensor(plain).std()
    assert (torch.tensor(ours) - torch.tensor(plain)).abs().max() < 0.2 * spread

"""What a model under FSDP2 returns, in one process that shards over gloo, with and without the mend; a head's norm.

The gradients of a head that is gathered with its norm are compared in tests/methods/test_matrix.py.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from hpt_trl.errors import UserError
from hpt_trl.models.fsdp2 import mend_fsdp2
from tests.helpers.processes import ROOT, free_port

# A value model, as accelerate shards one: its policy on layers and on the whole.
PROGRAM = """
import json, sys, torch, torch.distributed
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import fully_shard
from hpt_trl.models.fsdp2 import mend_fsdp2
from hpt_trl.models.value_model import load_value_model

torch.distributed.init_process_group("gloo", rank=0, world_size=1)
ids = torch.arange(40).view(2, 20)
mask = torch.ones_like(ids, dtype=torch.bool)


def values(mended):
    if mended:
        mend_fsdp2()
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


def test_the_head_of_a_vision_language_model_is_gathered_with_its_norm(vlm_path, tiny_model_path):
    from accelerate.utils import fsdp_utils
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    mend_fsdp2()
    find = fsdp_utils._find_final_norm
    seeing, text = (
        AutoModelForImageTextToText.from_pretrained(vlm_path),
        AutoModelForCausalLM.from_pretrained(tiny_model_path),
    )
    # The fault: when this fails, accelerate finds it by itself.
    assert find.__wrapped__(seeing) is None
    assert find(seeing) is seeing.model.text_model.norm
    assert find(text) is find.__wrapped__(text) is text.model.norm
    assert find(seeing.model.vision_model) is None
    seeing.lm_head.requires_grad_(False)
    assert find(seeing) is None
    seeing.lm_head.requires_grad_(True)
    seeing.model.text_model.norm = torch.nn.Identity()
    with pytest.raises(UserError, match="FSDP2 cannot train the head of Idefics3ForConditionalGeneration"):
        find(seeing)

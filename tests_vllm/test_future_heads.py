"""Folders with layers for future tokens are plain models to vLLM: heads beside it, and layers that a checkpoint ships.

The answers are those of transformers, token for token, which reads the same folder.
"""

import json
from pathlib import Path

import pytest
import yaml

from tests.helpers.shipped import save_shipping_model, shipped_tensors
from tests_vllm.launch import run_command
from tests_vllm.test_evaluate import ROWS, samples, write

pytestmark = pytest.mark.timeout(1800)


def train(folder: Path, stage: str, model: str, **changes) -> Path:
    """The output of two steps, which change the model."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    keys = {"stage": stage, "model_name_or_path": model, "dataset_name": str(data), "dtype": "float32"}
    keys |= {"output_dir": str(folder / stage), "max_steps": 2, "learning_rate": 0.01, "use_cpu": True, "bf16": False}
    keys |= {"report_to": "none", "save_strategy": "no", "per_device_train_batch_size": 2, "global_batch_size": 2}
    (folder / f"{stage}.yaml").write_text(yaml.safe_dump(keys | changes))
    run_command("run", folder / f"{stage}.yaml")
    return folder / stage


def assert_same_answers(folder: Path, model: Path) -> None:
    run_command("eval", write(folder, "vllm", model_name_or_path=str(model), vllm="colocate"))
    run_command("eval", write(folder, "plain", model_name_or_path=str(model)))
    answers = [line["ids"] for line in samples(folder / "vllm")]
    assert answers == [line["ids"] for line in samples(folder / "plain")]
    assert len({token for answer in answers for token in answer}) > 2, answers


def test_a_folder_with_heads_for_future_tokens(model_path, tmp_path):
    trained = train(tmp_path, "mtp", model_path, n_future_tokens=3)
    assert (trained / "future_heads" / "model.safetensors").is_file()
    assert_same_answers(tmp_path, trained)


def test_a_folder_with_the_layers_that_its_checkpoint_ships(tmp_path):
    sizes = {"hidden_size": 128, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 128, "moe_intermediate_size": 64}
    model = save_shipping_model(tmp_path / "model", "glm4_moe", shards=True, **sizes)
    trained = train(tmp_path, "sft", model)
    assert shipped_tensors(trained, "glm4_moe").keys() == shipped_tensors(model, "glm4_moe").keys()
    index = json.loads((trained / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() > shipped_tensors(trained, "glm4_moe").keys()
    assert_same_answers(tmp_path, trained)

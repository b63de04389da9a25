"""An evaluation whose completions vLLM draws: the model's own, kept, and of an adapter those of its merged weights."""

import json
from pathlib import Path

import pytest
import yaml

from tests_vllm.launch import run_command

# Engines take half a minute to start on two busy cores.
pytestmark = pytest.mark.timeout(1800)

ROWS = [{"prompt": f"What is {i} + 1?", "completion": f"It is {i + 1}.", "answer": str(i + 1)} for i in range(6)]


def write(folder: Path, name: str, **changes) -> Path:
    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    keys = {
        "stage": "evaluate",
        "dtype": "float32",
        "dataset_name": str(data),
        "output_dir": str(folder / name),
        "reward_funcs": ["tests_vllm.runs.reward"],
        "measures": ["avg@k"],
        "success_threshold": 0.9,
        "max_completion_length": 12,
        "per_device_eval_batch_size": 4,
        "vllm_gpu_memory_utilization": 0.1,
        "vllm_max_model_length": 256,
        "use_cpu": True,
    } | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def samples(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_greedy_completions_are_those_of_transformers(model_path, tmp_path):
    run_command("eval", write(tmp_path, "vllm", model_name_or_path=model_path, vllm="colocate"))
    run_command("eval", write(tmp_path, "plain", model_name_or_path=model_path))
    vllm, plain = samples(tmp_path / "vllm"), samples(tmp_path / "plain")
    assert [line["prompt_ids"] for line in vllm] == [line["prompt_ids"] for line in plain]
    assert [line["ids"] for line in vllm] == [line["ids"] for line in plain]
    assert [line["truncated"] for line in vllm] == [line["truncated"] for line in plain]
    results = [json.loads((tmp_path / name / "results.json").read_text())["measures"] for name in ("vllm", "plain")]
    assert results[0] == results[1]
    assert json.loads((tmp_path / "vllm" / "samples.json").read_text())["engine"] == "vllm"


def test_sampled_completions_go_on_where_they_were(model_path, tmp_path):
    keys = {"model_name_or_path": model_path, "vllm": "colocate", "n": 3, "k": [1], "temperature": 1.0}
    run_command("eval", write(tmp_path, "sampled", **keys))
    folder = tmp_path / "sampled"
    whole = samples(folder)
    assert len(whole) == 18 and len({tuple(line["ids"]) for line in whole}) > 9
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").unlink()
    (folder / "samples.0.part").write_text("".join(lines[:7]))
    run_command("eval", write(tmp_path, "sampled", **keys))
    assert [line["ids"] for line in samples(folder)] == [line["ids"] for line in whole]

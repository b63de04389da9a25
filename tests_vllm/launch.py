"""Recipes of the three stages on the tiny model, and the processes that run them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STAGES = ("hpt", "grpo", "ppo")

# Steps large enough that greedy answers change; rewards that differ inside of a group.
COMMON: dict[str, Any] = {
    "dtype": "float32",
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "dataset_name": "arithmetic",
    "dataset_options": {"size": 32, "test_size": 4, "terms": [2, 2], "largest": 20},
    "reward_funcs": ["tests_vllm.runs.reward"],
    "num_generations": 4,
    "max_completion_length": 12,
    "global_batch_size": 16,
    "per_device_train_batch_size": 8,
    "max_steps": 3,
    "learning_rate": 1.0e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "vllm_gpu_memory_utilization": 0.1,
    "report_to": "none",
    "seed": 0,
}
OF_STAGE: dict[str, dict[str, Any]] = {
    "hpt": {"switch_gate": 1},
    "grpo": {},
    "ppo": {"num_generations": 1, "num_iterations": 2, "kl_coef": 0.01},
}


def write_recipe(path: Path, stage: str, model: str, **keys: Any) -> Path:
    """Writes a recipe whose run goes to the folder of its name beside it."""
    named = {"stage": stage, "output_dir": str(path.with_suffix("")), "model_name_or_path": model}
    path.write_text(json.dumps(named | COMMON | OF_STAGE[stage] | keys))
    return path


def start(*words: Any, module: str = "tests_vllm.runs", **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | variables,
    )


def output_of(process: subprocess.Popen, seconds: float = 400.0) -> str:
    """What a process said, once it has ended; it is killed after `seconds`."""
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running after {seconds} s:\n{process.communicate()[0][-4000:]}") from None


def run(*words: Any, **variables: str) -> str:
    """Runs a command of `tests_vllm.runs` that has to succeed; returns what it said."""
    process = start(*words, **variables)
    said = output_of(process)
    assert process.returncode == 0, said[-6000:]
    return said


def run_command(*words: Any) -> str:
    """Runs `hpt-trl`, which has to succeed; returns what it said."""
    process = start(*words, module="hpt_trl")
    said = output_of(process)
    assert process.returncode == 0, said[-6000:]
    return said


def fresh_answers(folder: Path, model: Any) -> list[list[int]]:
    """Greedy answers, a list of token ids to each question, of an engine that has just loaded the model."""
    run("answer", folder / "fresh.json", model, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    return json.loads((folder / "fresh.json").read_text())


def logged(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics that belong to a training step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "grad_norm" in line]

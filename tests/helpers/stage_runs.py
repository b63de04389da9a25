"""Whole runs of stages over a few sums, on the tiny model."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

KEYS = {
    "dtype": "float32",
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 3,
    "max_steps": 4,
    "logging_steps": 1,
    "learning_rate": 3e-3,
    "save_strategy": "no",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
    "seed": 3,
}
LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "v_proj"]}


def sums(count: int = 24) -> list[dict]:
    return [
        {
            "prompt": f"What is {i} + 1?",
            "completion": f"It is {i + 1}.",
            "chosen": f"It is {i + 1}.",
            "rejected": f"No idea, {i}",
            "answer": str(i + 1),
        }
        for i in range(count)
    ]


@pytest.fixture
def recipe(tmp_path, tiny_model_path):
    """Writes the recipe of a stage over `sums`, 6 of them held out, and returns its path."""
    return recipe_in(tmp_path, tiny_model_path)


def recipe_in(folder: Path, model: str) -> Callable[..., str]:
    """What writes recipes into a folder, whose runs lie there as well."""
    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in sums()))

    def write(stage: str, **changes) -> str:
        values = {**KEYS, "stage": stage, "dataset_name": str(data), "test_split_size": 6}
        values |= {"model_name_or_path": model, "output_dir": str(folder / stage)}
        if stage in ("grpo", "ppo"):
            values |= {
                "num_generations": 2,
                "max_completion_length": 8,
                "reward_funcs": ["tests.helpers.stage_runs.remainder"],
            }
        values |= changes
        path = folder / f"{stage}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return str(path)

    return write


@pytest.fixture
def model_with(tmp_path, tiny_model_path):
    """The tiny model with another chat template."""

    def save(template: str) -> str:
        folder = str(tmp_path / "model")
        tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        AutoModelForCausalLM.from_pretrained(tiny_model_path).save_pretrained(folder)
        return folder

    return save


def remainder(completion_ids, **columns) -> list[float]:
    return [float(sum(ids) % 7) for ids in completion_ids]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def weights(folder: Path, file: str = "model.safetensors") -> str:
    return hashlib.sha256((folder / file).read_bytes()).hexdigest()

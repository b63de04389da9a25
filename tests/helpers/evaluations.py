"""Recipes of `stage: evaluate` over a few sums, rewards for them, and what their runs leave."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hpt_trl.cli import main
from tests.helpers.stage_runs import sums


def remainder(completion_ids, **columns) -> list[float]:
    """Solved or not by what was drawn, so that figures differ between rows."""
    return [float(sum(ids) % 2) for ids in completion_ids]


def length(completion_ids, **columns) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def broken(completion_ids, **columns) -> list[float]:
    # Not at the few rows on which rewards are tried first.
    if len(completion_ids) > 8:
        raise RuntimeError("the judge is gone")
    return remainder(completion_ids)


def judges_some(completion_ids, **columns) -> list[float | None]:
    return [1.0 if sum(ids) % 2 else None for ids in completion_ids]


def characters(completions, **columns) -> list[float]:
    return [float(len(completion[-1]["content"])) for completion in completions]


def save_reward_model(model: str, folder: Path) -> None:
    torch.manual_seed(0)
    judge = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    torch.nn.init.normal_(judge.score.weight)
    judge.config.pad_token_id = AutoTokenizer.from_pretrained(model).pad_token_id
    judge.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


HERE = "tests.helpers.evaluations"
# Of a recipe that draws four completions a prompt.
EVALUATING = {
    "measures": ["pass@k", "avg@k"],
    "n": 4,
    "k": [1, 2, 4],
    "temperature": 1.0,
    "max_completion_length": 8,
    "per_device_eval_batch_size": 5,
    "use_cpu": True,
    "seed": 3,
}


@pytest.fixture
def evaluation(tmp_path, tiny_model_path):
    """Writes a recipe over 6 sums, 4 completions each, and returns its path."""
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in sums(6)))

    def write(name: str = "evaluate", **changes) -> str:
        values = EVALUATING | {
            "stage": "evaluate",
            "model_name_or_path": tiny_model_path,
            "dtype": "float32",
            "dataset_name": str(data),
            "output_dir": str(tmp_path / name),
            "reward_funcs": [f"{HERE}.remainder"],
            **changes,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return str(path)

    return write


def run(*words: str) -> None:
    assert main(list(words)) == 0


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def samples(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]

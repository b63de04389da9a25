"""Recipes of `stage: mtp` that `check` refuses, by file, line and key, before weights are loaded."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hpt_trl.cli import main
from tests.helpers.stage_runs import KEYS, sums


@pytest.fixture
def recipe(tmp_path, tiny_model_path):
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums()))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"{i}"}) + "\n" for i in range(20)))

    def write(**changes) -> str:
        values = {**KEYS, "stage": "mtp", "dataset_name": str(tmp_path / "sums.jsonl"), "test_split_size": 6}
        values |= {"model_name_or_path": tiny_model_path, "output_dir": str(tmp_path / "run")} | changes
        path = tmp_path / "mtp.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return write


TEXTS = {"dataset_name": "texts.jsonl", "dataset_layout": "documents"}
# Rows that are none: it is refused before they are read.
SOLUTIONS = {"dataset_layout": "solutions", "n_samples": 8}


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        (TEXTS | {"n_future_tokens": 8}, "n_future_tokens", "so that the last head has nothing to predict"),
        (TEXTS | {"eval_samples": 4}, "eval_samples", "documents hold no prompts to answer"),
        (TEXTS | {"dataset_text_field": "body"}, "dataset_text_field", "column_mapping: {text: body}"),
        ({"head_init": "shipped"}, "head_init", "`shipped_heads: train`"),
        ({"shipped_heads": "train"}, "n_future_tokens", "announces no layers for future tokens"),
        ({"weighting": "rho1"}, "reference_model_name_or_path", "is missing"),
        (SOLUTIONS | {"difficulty_bins": [3, 2]}, "difficulty_bins", "rising edges"),
        (SOLUTIONS | {"correct_ratio": 0.5, "n_test_samples": None}, "n_test_samples", "gives shares of a number"),
        ({"n_future_tokens": 2.5}, "n_future_tokens", "2.5"),
        ({"head_weights": [1, 2]}, "head_weights", "2 numbers for `n_future_tokens` 4"),
    ],
)
def test_recipes_that_are_refused(recipe, tmp_path, monkeypatch, capsys, changes, key, said):
    monkeypatch.chdir(tmp_path)
    assert main(["check", recipe(**changes)]) == 2
    error = capsys.readouterr().err
    assert said in error and f"`{key}`" in error and "mtp.yaml" in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_run_says_that_it_trains_the_models_heads_on(recipe, tmp_path, capsys):
    few = {"n_future_tokens": 3, "max_steps": 1}
    assert main(["run", recipe(**few)]) == 0
    assert "heads of" not in capsys.readouterr().out
    first, second = tmp_path / "run", tmp_path / "again"
    assert main(["run", recipe(**few, model_name_or_path=str(first), output_dir=str(second))]) == 0
    assert f"Trained on: the heads of {first}" in capsys.readouterr().out
    before, after = (load_file(folder / "future_heads" / "model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys() and not all(torch.equal(before[name], after[name]) for name in before)

"""The positive-words task: its reward, its prompts, and a run of it on the command line."""

import json

import pytest
from transformers import TrainerState

from hpt_trl import UserError
from hpt_trl.data.tasks import prompts
from hpt_trl.rewards.positive_words import PositiveWords
from hpt_trl.runs import runner
from tests.helpers.tiny import save_tiny_model


def test_a_positive_word_anywhere_counts():
    completions = [" so HAPPY today", " lovely", " sad", "", [{"role": "assistant", "content": "great"}]]
    assert PositiveWords()(prompts=["I feel"] * 5, completions=completions) == [1.0, 1.0, -1.0, -1.0, 1.0]


def test_finds_and_a_report_every_ten_epochs_are_printed(capsys):
    reward, state = PositiveWords(), TrainerState(max_steps=80, num_train_epochs=20)
    for epoch in range(20):
        state.epoch = float(epoch)
        reward(prompts=["I feel", "I am"], completions=[" joy" if epoch > 9 else " bad", " sad"], trainer_state=state)
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("found `joy`: I feel' joy'") == 10
    reports = [line for line in lines if line.startswith("epoch")]
    assert reports[0].startswith("epoch 10 of 20: 0.0% of the last 20 completions")
    assert reports[1].startswith("epoch 20 of 20: 50.0% of the last 20 completions")
    quiet = PositiveWords(prints_finds=False)
    assert quiet(prompts=["I feel"], completions=[" joy"], trainer_state=state) == [1.0]
    assert capsys.readouterr().out.startswith("epoch 20 of 20: 100.0%")
    # Outside of a training nothing is printed.
    reward(prompts=["I feel"], completions=[" joy"], trainer_state=TrainerState())
    assert capsys.readouterr().out == ""


def test_listed_prompts_go_round():
    train, test = prompts({"prompts": ["a", "b", "c"], "size": 4})
    assert train["prompt"] == ["a", "b", "c", "a"]
    assert test["prompt"] == ["a", "b", "c"]
    assert prompts({"prompts": ["a"], "test_prompts": ["z"]})[1]["prompt"] == ["z"]
    for options in ({}, {"prompts": []}, {"prompts": "a"}, {"prompts": ["a"], "size": 0}, {"prompt": ["a"]}):
        with pytest.raises(UserError, match="prompts"):
            prompts(options)


@pytest.mark.parametrize("name", ["smollm2-135m", "tinyllama-1.1b"])
def test_the_recipe_runs(tmp_path, capsys, name):
    model = save_tiny_model(tmp_path / "model")
    changes = {"model_name_or_path": model, "output_dir": tmp_path / "out", "num_train_epochs": 2, "bf16": "false"}
    changes |= {"dtype": "float32", "eval_num_generations": 2, "use_cpu": "true", "lora_target_modules": "all-linear"}
    words = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    runner.run(f"ppo/{name}-positive-words", words)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["steps"] == 8
    assert results["after"]["samples"] == 3
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert "This makes me" in capsys.readouterr().out

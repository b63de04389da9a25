"""Runs that train nothing do not end as success, and what a run has spent is counted over all its attempts."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from hpt_trl.errors import UserError
from hpt_trl.planning.check import check
from hpt_trl.runs import runner
from hpt_trl.runs.health import fingerprint
from tests.helpers.processes import ROOT
from tests.helpers.stage_runs import results, sums


def constant(completions, **columns) -> list[float]:
    return [0.5 for _ in completions]


def test_weights_that_are_no_numbers_end_the_run(recipe, tmp_path):
    path = recipe("sft", learning_rate=1e30, max_steps=6, logging_steps=2, save_strategy="steps", save_steps=3)
    command = [sys.executable, "-m", "hpt_trl", "run", path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "step 2: the weights are no longer numbers" in done.stderr and "`learning_rate` (now 1e+30)" in done.stderr
    out = tmp_path / "sft"
    assert not (out / "results.json").exists() and not list(out.glob("*.safetensors")) + list(out.glob("checkpoint-*"))


def test_a_checkpoint_from_before_is_named(recipe):
    # The first step of a warm-up is of no length.
    changes = {"learning_rate": 1e30, "warmup_steps": 2, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(UserError, match=r"step 3: the weights are no longer numbers.*checkpoint-2 is from before"):
        runner.run(recipe("sft", **changes), [])


@pytest.mark.parametrize("stage", ["grpo", "hpt"])
def test_groups_without_contrast_are_told_and_end_as_an_error(recipe, tmp_path, stage, caplog):
    changes = {"reward_funcs": ["tests.runs.test_health.constant"], "max_steps": 11, "unify_strategy": "no"}
    changes |= {"num_generations": 2, "max_completion_length": 4}
    if stage == "grpo":
        del changes["unify_strategy"]
    with pytest.raises(UserError, match=r"nothing was trained: after 11 steps.*there was never a gradient"):
        runner.run(recipe(stage, **changes), [])
    assert "for 10 logs in a row every prompt's rollouts had one and the same reward" in caplog.text
    assert not (tmp_path / stage / "results.json").exists() and (tmp_path / stage / "metrics.jsonl").exists()


def test_steps_too_small_for_the_type_are_no_training(recipe):
    with pytest.raises(UserError, match=r"though there were gradients.*too small for the weights' type"):
        runner.run(recipe("sft", learning_rate=1e-50), [])


def test_fewer_rows_than_a_batch_are_refused_before_anything_is_loaded(recipe, tmp_path, capsys):
    few = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 10}
    with pytest.raises(UserError, match=r"takes 20 prompts \(40 completions in groups of 2\), but .* has 18"):
        check(recipe("grpo", **few), [])
    with pytest.raises(UserError, match=r"a batch takes 40 rows .* has 18 to train on"):
        check(recipe("sft", per_device_train_batch_size=40, dataloader_drop_last=True), [])
    check(recipe("grpo", gradient_accumulation_steps=8, max_steps=-1, num_train_epochs=2), [])
    assert "2 rows, others each time, are left out of an epoch" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo"])
def test_a_resumed_run_counts_all_of_its_attempts(recipe, tmp_path, stage):
    path = recipe(stage, save_strategy="steps", save_steps=2, logging_steps=3, max_steps=5)
    runner.run(path, [])
    straight = results(tmp_path / stage)
    (tmp_path / stage / "results.json").unlink()
    runner.run(path, ["--resume_from_checkpoint", str(tmp_path / stage / "checkpoint-2")])
    resumed = results(tmp_path / stage)
    assert resumed["tokens"]["training"] == straight["tokens"]["training"] > 0
    assert resumed["train_loss"] == pytest.approx(straight["train_loss"], rel=1e-5, abs=1e-7)
    spent = json.loads((tmp_path / stage / "checkpoint-2" / "totals.json").read_text())
    assert resumed["wall_time_s"]["train"] > spent["train_s"] > 0
    lines = [json.loads(line) for line in (tmp_path / stage / "metrics.jsonl").read_text().splitlines()]
    (closing,) = (line["train_loss"] for line in lines if "train_loss" in line)
    assert closing == pytest.approx(straight["train_loss"], rel=1e-5, abs=1e-7)


def test_held_out_rows_that_are_trained_on_are_told(recipe, tmp_path, capsys, caplog):
    data = tmp_path / "split"
    data.mkdir()
    rows = sums(12)
    for name, part in (("train", rows[:9]), ("test", rows[6:])):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    path = recipe("sft", dataset_name=str(data), test_split_size=None)
    check(path, [])
    assert "6 rows, 3 of them also in the training rows" in capsys.readouterr().out
    assert "3 of the 6 rows of" in caplog.text and "their measures tell of memory" in caplog.text
    runner.run(path, [])
    assert results(tmp_path / "sft")["overlap"] == 3


def test_the_fingerprint_sees_any_weight(tiny_model_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    before = fingerprint(model)
    assert torch.equal(before, fingerprint(model))
    with torch.no_grad():
        list(model.parameters())[-1].view(-1)[-1] += 1e-3
    assert not torch.equal(before, fingerprint(model))

"""Warnings of real runs: said once, kept for reading, and where the recipe asks for it the end of the training."""

import json

import pytest

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.planning.check import check
from hpt_trl.runs import reporting, runner
from hpt_trl.runs.signs import PATIENCE
from hpt_trl.runs.warnings_file import read_warnings
from tests.helpers.stage_runs import results
from tests.helpers.trackers import read_tensorboard

CONSTANT = "tests.runs.test_health.constant"
FLAT = {"reward_funcs": [CONSTANT], "max_completion_length": 2}


def of_the_prompt(prompts, **columns) -> list[float]:
    """Differs between prompts, never between completions of one."""
    return [float(len(str(prompt)) % 5 + sum(map(ord, str(prompt))) % 7) for prompt in prompts]


@pytest.mark.parametrize(
    ("reward", "kind", "said"),
    [
        (CONSTANT, "constant_reward", "every completion had the same reward (reward 0.25)"),
        ("tests.runs.test_warned.of_the_prompt", "no_contrast", "without contrast there is no advantage"),
    ],
)
def test_rewards_that_teach_nothing_are_warned_of_while_they_last(recipe, tmp_path, caplog, reward, kind, said):
    path = recipe("grpo", **FLAT | {"reward_funcs": [reward]}, max_steps=PATIENCE + 2, report_to="tensorboard")
    with pytest.raises(UserError, match="nothing was trained"):
        runner.run(path, [])
    messages = [record.getMessage() for record in caplog.records if "in each of the last" in record.getMessage()]
    (line,) = read_warnings(tmp_path / "grpo")
    assert messages == [f"step {PATIENCE}: {line['message']}"] and said in line["message"]
    assert (line["step"], line["kind"]) == (PATIENCE, kind)
    # For reading: in the results, in the summary, and by the tracker.
    assert results(tmp_path / "grpo")["warnings"] == [line]
    assert f"Warning (step {PATIENCE}, {kind}): {line['message']}" in reporting.summary(tmp_path / "grpo")
    _, texts, _ = read_tensorboard(tmp_path / "grpo" / "runs" / "grpo")
    assert texts[f"warnings/{kind}"] == [(PATIENCE, line["message"])]


def test_a_training_ends_where_the_recipe_asks_for_it(recipe, tmp_path, capsys):
    path = recipe("grpo", **FLAT, max_steps=PATIENCE + 6, stop_on_warnings=["constant_reward"])
    assert main(["run", path]) == 2
    said, out = capsys.readouterr().err, tmp_path / "grpo"
    # With the step after the warning, whose checkpoint is whole.
    assert f"ended after step {PATIENCE + 1}, as `stop_on_warnings` asks for constant_reward" in said
    assert "Traceback" not in said and str(out / f"checkpoint-{PATIENCE + 1}") in said
    assert not (out / "results.json").exists() and (out / f"checkpoint-{PATIENCE + 1}").is_dir()
    assert "Not finished" in reporting.summary(out) and "Warning (step 10, constant_reward)" in reporting.summary(out)
    # It goes on all the same, is not warned again, and has not forgotten.
    assert main(["run", path, "--resume_from_checkpoint", "true"]) == 2
    assert "nothing was trained" in capsys.readouterr().err
    assert [line["kind"] for line in results(out)["warnings"]] == ["constant_reward"]
    assert results(out)["steps"] == PATIENCE + 6


def test_a_sign_at_the_last_step_fails_a_run_that_is_whole(recipe, tmp_path):
    path = recipe("grpo", **FLAT, max_steps=PATIENCE, stop_on_warnings=["all"], weight_decay=0.1)
    with pytest.raises(UserError, match="nothing was trained|the last steps of the training show constant_reward"):
        runner.run(path, [])
    assert results(tmp_path / "grpo")["warnings"][0]["step"] == PATIENCE


def test_what_comes_after_a_checkpoint_is_forgotten(recipe, tmp_path):
    path = recipe("sft", save_strategy="steps", save_steps=2)
    runner.run(path, [])
    out = tmp_path / "sft"
    (out / "results.json").unlink()
    lines = [{"step": step, "kind": f"k{step}", "message": "m"} for step in (1, 3)]
    (out / "warnings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "ki')
    runner.run(path, ["--resume_from_checkpoint", str(out / "checkpoint-2")])
    assert results(out)["warnings"] == read_warnings(out) == lines[:1]
    # A new run has none.
    runner.run(path, ["--overwrite", "true"])
    assert results(out)["warnings"] == [] and not (out / "warnings.jsonl").exists()


def test_rows_without_a_token_to_train_on_are_warned_of_at_once(recipe, tmp_path, caplog):
    """Answers that begin behind the cut."""
    with pytest.raises(UserError):
        runner.run(recipe("sft", max_length=4, logging_steps=50), [])
    said = [record.getMessage() for record in caplog.records if "has a token that is trained on" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("step 1: none of the 4 rows") and "`max_length`" in said[0]
    assert [line["kind"] for line in read_warnings(tmp_path / "sft")] == ["no_supervised_tokens"]


def test_pairs_whose_answers_are_the_same_are_warned_of(recipe, tmp_path):
    rows = [{"prompt": f"What is {i} + 1?", "chosen": "It is.", "rejected": "It is."} for i in range(24)]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = recipe("dpo", max_steps=PATIENCE + 1, dataset_name=str(tmp_path / "same.jsonl"))
    with pytest.raises(UserError, match="nothing was trained"):
        runner.run(path, [])
    assert [line["kind"] for line in results(tmp_path / "dpo")["warnings"]] == ["no_margin"]


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "grpo", "ppo"])
def test_healthy_runs_are_not_warned_of(recipe, tmp_path, stage):
    runner.run(recipe(stage, max_steps=2 * PATIENCE, learning_rate=1e-3), [])
    assert results(tmp_path / stage)["warnings"] == []


@pytest.mark.parametrize(
    ("value", "said"), [("kll", "no warning `kll`.*Did you mean `kl`"), ("none", "allowed: .*all")]
)
def test_a_kind_that_there_is_not_is_refused(recipe, value, said):
    with pytest.raises(UserError, match=r"grpo.yaml, line \d+, `stop_on_warnings`: there is " + said):
        check(recipe("grpo", stop_on_warnings=value), [])

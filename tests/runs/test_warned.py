"""Warnings of real runs: said once, kept for reading, and where the recipe asks for it the end of the training."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.planning.check import check
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.runs import reporting, runner
from hpt_trl.runs.signs import PATIENCE
from hpt_trl.runs.warned import Warnings
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
    warnings = read_warnings(tmp_path / "grpo")
    assert messages == [f"step {line['step']}: {line['message']}" for line in warnings]
    # The tiny model knows no end.
    assert [line["kind"] for line in warnings] == [kind, "cut_completions"]
    line = warnings[0]
    assert said in line["message"]
    assert (line["step"], line["kind"]) == (PATIENCE, kind)
    # For reading: in the results, in the summary, and by the tracker.
    assert results(tmp_path / "grpo")["warnings"] == warnings
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
    assert [line["kind"] for line in results(out)["warnings"]] == ["constant_reward", "cut_completions"]
    assert results(out)["steps"] == PATIENCE + 6


def test_a_sign_at_the_last_step_fails_a_run_that_is_whole(recipe, tmp_path):
    path = recipe("grpo", **FLAT, max_steps=PATIENCE, stop_on_warnings=["all"], weight_decay=0.1)
    with pytest.raises(UserError, match=r"nothing was trained|the last steps of the training show constant_reward"):
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


@pytest.mark.parametrize("stops", [None, ["no_supervised_tokens"]])
def test_rows_without_a_token_to_train_on_are_warned_of_at_once(recipe, tmp_path, tiny_model_path, caplog, stops):
    """A recipe's rows are looked at before, and TRL leaves such rows out of what it prepares itself."""
    named = read_recipe(Path(recipe("sft", stop_on_warnings=stops)))
    ids = list(range(5, 13))
    rows = [{"input_ids": ids, "labels": ids if place % 2 else [-100] * 8} for place in range(8)]
    config = SFTConfig(
        str(tmp_path / "sft"),
        per_device_train_batch_size=1,
        max_steps=6,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    told: list[tuple] = []
    warnings = Warnings(named, lambda *words: told.append(words))
    trainer = SFTTrainer(tiny_model_path, config, train_dataset=Dataset.from_list(rows[1:]), callbacks=[warnings])
    warnings.watch(trainer)
    trainer.train()
    said = [record.getMessage() for record in caplog.records if "has a token that is trained on" in record.getMessage()]
    # The second row has none; said before the step, and once.
    assert (
        len(said) == 1 and said[0].startswith("step 2: none of the 1 rows of this step") and "`max_length`" in said[0]
    )
    assert [(step, kind) for step, kind, _ in told] == [(2, "no_supervised_tokens")]
    assert read_warnings(tmp_path / "sft") == warnings.kept
    assert trainer.state.global_step == (6 if stops is None else 2)
    assert (tmp_path / "sft" / "checkpoint-2").is_dir() is (stops is not None)
    if stops is not None:
        with pytest.raises(UserError, match="ended after step 2, as `stop_on_warnings` asks for no_supervised_tokens"):
            warnings.refuse_ended()


def test_pairs_whose_answers_differ_behind_the_cut_are_warned_of(recipe, tmp_path):
    same = "It is the same. " * 8
    rows = [{"prompt": f"What is {i} + 1?", "chosen": same + "a", "rejected": same + "b"} for i in range(24)]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = recipe("dpo", max_steps=PATIENCE + 1, max_length=40, dataset_name=str(tmp_path / "same.jsonl"))
    # Weights move, by the rounding of two gradients that should cancel out.
    runner.run(path, [])
    assert [line["kind"] for line in results(tmp_path / "dpo")["warnings"]] == ["no_margin"]


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "grpo", "ppo"])
def test_healthy_runs_are_not_warned_of(recipe, tmp_path, stage):
    runner.run(recipe(stage, max_steps=2 * PATIENCE, learning_rate=1e-3), [])
    # The tiny model knows no end, and what it writes does not get better in twenty steps.
    assert {line["kind"] for line in results(tmp_path / stage)["warnings"]} <= {"cut_completions"}


@pytest.mark.parametrize(
    ("value", "said"), [("kll", "no warning `kll`.*Did you mean `kl`"), ("none", "no warning `none`; allowed: .*all")]
)
def test_a_kind_that_there_is_not_is_refused(recipe, value, said):
    with pytest.raises(UserError, match=r"grpo.yaml, line \d+, `stop_on_warnings`: there is " + said):
        check(recipe("grpo", stop_on_warnings=value), [])

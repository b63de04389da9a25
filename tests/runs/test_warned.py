"""Warnings of real runs: said once, kept for reading, and where the recipe asks for it the end of the training."""

import json
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.planning.check import check
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.runs import reporting, runner
from hpt_trl.runs.signs import ENTROPY_LOW, ENTROPY_RISE, KL_HIGH, PATIENCE, PATIENCE_DRIFT
from hpt_trl.runs.warned import Warnings
from hpt_trl.runs.warnings_file import read_warnings
from tests.helpers.images import image_rows
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


def test_logs_are_counted_and_not_steps(recipe, tmp_path):
    path = recipe("grpo", **FLAT, logging_steps=3, max_steps=3 * PATIENCE + 3)
    with pytest.raises(UserError, match="nothing was trained"):
        runner.run(path, [])
    assert read_warnings(tmp_path / "grpo")[0]["step"] == 3 * PATIENCE


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


# A mistake of a recipe each, from which the sign follows.
GOES_WRONG = {
    "grpo_kl": ("grpo", "kl", {"learning_rate": 1.0, "beta": 0.01}),
    "ppo_kl": ("ppo", "kl", {"learning_rate": 1.0}),
    "entropy_low": ("ppo", "entropy_low", {"temperature": 1e-3}),
    "entropy_high": ("ppo", "entropy_high", {"learning_rate": 0.05, "weight_decay": 10.0, "critic": "head"}),
}


@pytest.fixture
def sure_model_path(tmp_path, tiny_model_path) -> str:
    """The tiny model with larger logits, so that its entropy is 0.2 nats per token and can rise."""
    folder = str(tmp_path / "sure")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    with torch.no_grad():
        model.model.norm.weight.mul_(8)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", GOES_WRONG)
def test_what_a_run_shows_is_warned_of_as_its_metrics_have_it(recipe, tmp_path, sure_model_path, case):
    stage, kind, changes = GOES_WRONG[case]
    if kind == "entropy_high":
        changes = changes | {"model_name_or_path": sure_model_path}
    runner.run(recipe(stage, max_steps=PATIENCE + 2, **changes), [])
    out = tmp_path / stage
    (line,) = [line for line in read_warnings(out) if line["kind"] == kind]
    logs = [log for log in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "entropy" in log]
    # Said at the first log with which it has lasted long enough, with the figure of that log.
    shown = [is_shown(kind, log, logs[0]) for log in logs]
    patience = PATIENCE if kind == "entropy_low" else PATIENCE_DRIFT
    assert line["step"] == next(n for n in range(patience, len(logs) + 1) if all(shown[n - patience : n]))
    figure = per_token(logs[line["step"] - 1]) if kind == "kl" else logs[line["step"] - 1]["entropy"]
    assert f"{figure:.2g} nats" in line["message"] or f"to {figure:.3g}:" in line["message"]
    assert results(out)["warnings"] == read_warnings(out)


def per_token(log: dict) -> float:
    return log["kl"] if "kl" in log else log["ppo/kl"] / log["completions/mean_length"]


def is_shown(kind: str, log: dict, first: dict) -> bool:
    if kind == "kl":
        return per_token(log) > KL_HIGH
    return log["entropy"] < ENTROPY_LOW if kind == "entropy_low" else log["entropy"] > first["entropy"] + ENTROPY_RISE


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_a_policy_that_runs_away_ends_the_command(recipe, tmp_path, capsys, stage):
    changes = {"beta": 0.01} if stage == "grpo" else {}
    path = recipe(stage, max_steps=40, learning_rate=1.0, stop_on_warnings=["kl"], **changes)
    assert main(["run", path]) == 2
    said, out = capsys.readouterr().err, tmp_path / stage
    (line,) = read_warnings(out)
    # The step that follows the warning is the last.
    ended = line["step"] + 1
    assert f"ended after step {ended}, as `stop_on_warnings` asks for kl: {line['message']}" in said
    assert "nats per token (above 1)" in said and ("`beta`" if stage == "grpo" else "`kl_coef`") in said
    assert "Traceback" not in said and (out / f"checkpoint-{ended}").is_dir() and not (out / "results.json").exists()


def chat(*turns: tuple) -> list[dict]:
    """Turns of user and assistant by turns; a third value is the turn's weight."""
    roles = ["user", "assistant"] * len(turns)
    return [{"role": role, **turn} for role, turn in zip(roles, map(turn_of, turns), strict=False)]


def turn_of(turn: tuple) -> dict:
    return dict(zip(("content", "weight"), turn, strict=False))


LONG = ("It is a long question that goes on. " * 6,)
ROWS = {
    "empty": ({"prompt": "What is 1 + 1?", "completion": ""}, r"the demonstration \(`completion`\) is empty"),
    "prompt_fills_it": ({"prompt": LONG[0], "completion": "2"}, "max_length 32 less one token for an answer"),
    "no_answer": ({"messages": chat(("Hello",))}, "end with a message of the assistant"),
    "all_are_context": ({"messages": chat(("Hello",), ("Yes.", 0))}, "no turn of the assistant is trained"),
    "cut_at_the_start": (
        {"messages": chat(("Hello",), ("Yes.",), LONG, ("No.", 0))},
        r"`max_length`: \S+: the tokens that are trained on are cut off: all rows have none in their last 32 ",
    ),
}


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("case", ROWS)
def test_rows_without_a_token_to_train_on_are_refused_before_a_run(recipe, tmp_path, capsys, case, command):
    row, said = ROWS[case]
    path = recipe("sft", **of_rows(tmp_path, [row] * 8), max_length=32, truncation_mode=CUT_AT.get(case))
    assert main([command, path]) == 2
    printed = capsys.readouterr().err
    assert re.search(said, printed) and "Traceback" not in printed and not (tmp_path / "sft").exists()


CUT_AT = {"cut_at_the_start": "keep_end"}


def of_rows(folder: Path, rows: list[dict]) -> dict:
    """Keys of a recipe over rows that are told apart by nothing but their number."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row | {"place": n}) + "\n" for n, row in enumerate(rows)))
    return {"dataset_name": str(folder / "rows.jsonl"), "test_split_size": None}


def test_some_rows_without_a_token_to_train_on_are_counted(recipe, tmp_path, caplog):
    rows = [{"messages": chat(("Hello",), ("Yes.",), LONG if n % 2 else ("So?",), ("No.", 0))} for n in range(12)]
    runner.run(recipe("sft", **of_rows(tmp_path, rows), max_length=32, truncation_mode="keep_end"), [])
    (said,) = [record.getMessage() for record in caplog.records if "are cut off" in record.getMessage()]
    assert "line 2: the tokens" in said and "the row is dropped: 6 of 12 rows have none in their last 32" in said
    assert results(tmp_path / "sft")["warnings"] == []


@pytest.mark.parametrize("stops", [None, ["no_supervised_tokens"]])
def test_answers_to_images_that_are_cut_off_are_warned_of(recipe, tmp_path, vlm_path, capsys, stops):
    """How many tokens an image takes is known when it is processed alone."""
    ask = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which color?"}]}]
    rows = [{"prompt": [ask[0] | {"content": "Which color?"}], **part(row)} for row in image_rows()]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(tmp_path / "images")
    changes = {"dataset_name": str(tmp_path / "images"), "test_split_size": None, "model_name_or_path": vlm_path}
    processor = AutoProcessor.from_pretrained(vlm_path)
    text = processor.apply_chat_template(ask, add_generation_prompt=True)
    changes["max_length"] = processor(images=[rows[0]["image"]], text=text, return_tensors="pt")["input_ids"].shape[1]
    path = recipe("sft", max_steps=3, per_device_train_batch_size=2, stop_on_warnings=stops, **changes)
    code, out = main(["run", path]), tmp_path / "sft"
    said = capsys.readouterr().err
    (line, *_) = read_warnings(out)
    assert (line["step"], line["kind"]) == (1, "no_supervised_tokens")
    assert "none of the 2 rows of this step has a token that is trained on" in line["message"]
    assert code == 2 and "Traceback" not in said, said
    assert ("as `stop_on_warnings` asks for no_supervised_tokens" in said) is (stops is not None), said
    assert (out / "checkpoint-1").is_dir() is (stops is not None)


def part(row: dict) -> dict:
    return {name: row[name] for name in ("completion", "image")}


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

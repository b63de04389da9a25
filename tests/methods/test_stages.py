"""Whole runs of the stages on TRL's stock trainers, on the tiny model: what they measure, leave, resume and refuse."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hpt_trl import PPOConfig, PPOTrainer
from hpt_trl.digests import note_digests
from hpt_trl.errors import UserError
from hpt_trl.models.merging import merge_adapter
from hpt_trl.planning.check import check
from hpt_trl.rewards.reward_model import RewardModel
from hpt_trl.runs import reporting, runner
from tests.helpers.processes import ROOT
from tests.helpers.stage_runs import LORA, remainder, results, sums, weights

MEASURES = {
    "sft": {"loss", "mean_token_accuracy"},
    "dpo": {"loss", "rewards/accuracies", "rewards/margins"},
    "reward": {"loss", "accuracy", "margin"},
}


@pytest.mark.parametrize("stage", MEASURES)
def test_a_stage_trains_and_measures_the_held_out_rows(recipe, tmp_path, capsys, stage):
    path = recipe(stage)
    check(path, [])
    printed = capsys.readouterr().out
    assert "18 rows" in printed and "the loss on 6 held-out rows" in printed and "What is" in printed
    assert ("rejected:" in printed) == (stage != "sft")
    runner.run(path, [])
    out = tmp_path / stage
    found = results(out)
    assert found["stage"] == stage and found["steps"] == 4 and found["tokens"]["training"] > 0
    for name in ("before", "after"):
        assert MEASURES[stage] <= set(found[name]["held_out"])
        assert not any("runtime" in key or "second" in key for key in found[name]["held_out"])
    assert found["after"]["held_out"]["loss"] < found["before"]["held_out"]["loss"]
    assert f"Held-out loss: {found['before']['held_out']['loss']:.4g} -> " in capsys.readouterr().out
    # The first measure is logged as step 0, so that the curve begins there.
    lines = reporting.read_metrics(out)
    assert lines[0]["step"] == 0 and lines[0]["eval_loss"] == found["before"]["held_out"]["loss"]
    (out / "curves.png").unlink()
    reporting.report(out)
    assert (out / "curves.png").exists() and "Held-out loss" in capsys.readouterr().out
    AutoTokenizer.from_pretrained(out)


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_rl_trains_on_rewards(recipe, tmp_path, stage):
    # Also with the trainer's own evaluation between the steps.
    runner.run(recipe(stage, eval_samples=2, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=2), [])
    assert any("eval_reward" in line for line in reporting.read_metrics(tmp_path / stage))
    found = results(tmp_path / stage)
    assert found["after"]["samples"] == 2 and "held_out" not in found["after"] and found["tokens"]["training"] > 0


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_rewards_judge_the_answers_of_stages_that_do_not_train_on_them(recipe, tmp_path, stage):
    extra = {"reward_funcs": ["math_answer"], "eval_samples": 3, "eval_max_new_tokens": 6, "max_steps": 1}
    runner.run(recipe(stage, **extra), [])
    after = results(tmp_path / stage)["after"]
    assert after["samples"] == 3 and after["max_new_tokens"] == 6 and after["held_out"]["loss"] > 0


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "grpo", "ppo"])
def test_a_stopped_run_goes_on_to_the_same_weights(recipe, tmp_path, stage):
    path = recipe(stage, save_strategy="steps", save_steps=2)
    runner.run(path, [])
    out, before = tmp_path / stage, results(tmp_path / stage)["before"]
    assert (before is None) == (stage in ("grpo", "ppo"))
    straight = weights(out)
    (out / "results.json").unlink()
    (out / "before.json").write_text(json.dumps(before))
    runner.run(path, ["--resume_from_checkpoint", str(out / "checkpoint-2")])
    assert weights(out) == straight and results(out)["before"] == before
    # Without the evaluation before the training the weights are the same: it draws no random numbers.
    runner.run(path, ["--output_dir", str(tmp_path / "again"), "--test_split_size", "6"])
    assert weights(tmp_path / "again") == straight


@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo", "ppo"])
def test_lora_leaves_an_adapter_that_merges(recipe, tmp_path, tiny_model_path, stage):
    runner.run(recipe(stage, **LORA), [])
    out = tmp_path / stage
    assert (out / "adapter_model.safetensors").exists() and not (out / "model.safetensors").exists()
    merge_adapter(out, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged.state_dict()[name], base.state_dict()[name])
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    with pytest.raises(UserError, match="not empty"):
        merge_adapter(out, tmp_path / "merged")
    with pytest.raises(UserError, match="holds no adapter"):
        merge_adapter(tiny_model_path, tmp_path / "other")


@pytest.mark.parametrize("stage", MEASURES)
def test_an_adapter_over_a_four_bit_base_learns(recipe, tmp_path, stage):
    pytest.importorskip("bitsandbytes")
    runner.run(recipe(stage, **LORA, load_in_4bit=True, max_steps=12, learning_rate=1e-2), [])
    before, after = (results(tmp_path / stage)[name]["held_out"]["loss"] for name in ("before", "after"))
    assert after < 0.97 * before


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_an_adapter_over_a_four_bit_base_is_trained_by_rewards(recipe, tmp_path, stage):
    pytest.importorskip("bitsandbytes")
    runner.run(recipe(stage, **LORA, load_in_4bit=True, eval_samples=2), [])
    adapter = load_file(tmp_path / stage / "adapter_model.safetensors")
    assert all(value.any() for name, value in adapter.items() if "lora_B" in name)


def held_out_scores(folder: Path, rows: list[dict], conversational: bool) -> list[list[float]]:
    """What RewardTrainer's own pipeline gives for chosen and rejected answers, from its dataset to the logits."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if conversational:
        rows = [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                **{key: [{"role": "assistant", "content": row[key]}] for key in ("chosen", "rejected")},
            }
            for row in rows
        ]
    config = RewardConfig(str(folder / "again"), use_cpu=True, bf16=False, report_to="none")
    data = Dataset.from_list(rows).select_columns(["prompt", "chosen", "rejected"])
    trainer = RewardTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(len(rows))])
    with torch.no_grad():
        logits = trainer.model.eval()(**batch).logits[:, 0].tolist()
    return [logits[: len(rows)], logits[len(rows) :]]


@pytest.mark.parametrize("conversational", [True, False], ids=["messages", "text"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_reward_model_scores_as_its_trainer_does(recipe, tmp_path, tiny_model_path, conversational, lora):
    path = recipe("reward", conversational=conversational, center_rewards_coefficient=0.01, **(LORA if lora else {}))
    runner.run(path, [])
    out = tmp_path / "reward"
    folder = out
    if lora:
        folder = tmp_path / "merged"
        merge_adapter(out, folder)
        # The score head that was trained is the one that was saved.
        base = AutoModelForSequenceClassification.from_pretrained(folder)
        assert base.config.num_labels == 1 and base.config.pad_token_id is not None
    rows = sums(5)
    expected = held_out_scores(folder, rows, conversational)
    model = RewardModel(str(out))
    assert model.__name__ == "reward"
    prompts = [row["prompt"] for row in rows]
    if conversational:
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    for key, scores in zip(("chosen", "rejected"), expected, strict=True):
        assert model(prompts=prompts, completions=[row[key] for row in rows]) == pytest.approx(scores, abs=1e-6)
    # Trained on these: it tells them apart.
    assert results(out)["after"]["held_out"]["accuracy"] == 1.0


def test_a_reward_model_is_a_reward(recipe, tmp_path, capsys):
    runner.run(recipe("reward"), [])
    folder = str(tmp_path / "reward")
    path = recipe("grpo", reward_funcs=None, reward_model_name_or_path=folder, eval_samples=2, max_steps=2)
    check(path, [])
    assert "reward (weight 1)" in (printed := capsys.readouterr().out) and "reward models" in printed
    runner.run(path, [])
    line = reporting.read_metrics(tmp_path / "grpo")[0]
    assert line["rewards/reward/mean"] == pytest.approx(line["reward"])
    # Beside a function the function alone judges the answers, even where it has no weight in the training.
    both = {"reward_funcs": ["tests.helpers.stage_runs.remainder"], "reward_model_name_or_path": [folder]}
    path = recipe("grpo", **both, reward_weights=[0.0, 0.5], eval_samples=2, max_steps=1)
    runner.run(path, ["--output_dir", str(tmp_path / "both")])
    after, line = results(tmp_path / "both")["after"], reporting.read_metrics(tmp_path / "both")[0]
    assert after["reward"] == sum(round(entry["reward"]) for entry in after["completions"]) / 2
    assert line["reward"] == pytest.approx(0.5 * line["rewards/reward/mean"])


def test_a_trainer_takes_a_reward_model_by_its_folder(recipe, tmp_path, tiny_model_path):
    runner.run(recipe("reward"), [])
    folder = str(tmp_path / "reward")
    trainer = PPOTrainer(
        model=tiny_model_path,
        reward_funcs=[remainder, folder],
        args=PPOConfig(str(tmp_path / "ppo"), max_steps=1, max_completion_length=4, bf16=False, use_cpu=True),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in sums()]),
    )
    trainer.train()
    assert "rewards/reward/mean" in trainer.state.log_history[0]


def test_reward_models_that_cannot_be_used_are_refused(recipe, tmp_path, tiny_model_path, capsys):
    runner.run(recipe("reward", max_steps=1), [])
    folder = tmp_path / "reward"

    def refused(**keys) -> str:
        with pytest.raises(UserError) as caught:
            check(recipe("grpo", **{"reward_funcs": None, "reward_model_name_or_path": [str(folder)]} | keys), [])
        return str(caught.value)

    assert "is no reward model" in refused(reward_model_name_or_path=[tiny_model_path])
    assert "there is no folder" in refused(reward_model_name_or_path=["./nowhere"])
    assert "2 weights for 1 rewards" in refused(reward_weights=[1.0, 2.0])
    assert "is a reward model" in refused(
        model_name_or_path=str(folder), reward_funcs=["tests.helpers.stage_runs.remainder"]
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    # The tokenizer's is known.
    check(recipe("grpo", reward_funcs=None, reward_model_name_or_path=[str(folder)]), [])
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 7}))
    assert "make the two agree" in refused()
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    message = refused()
    assert "has no padding token" in message and "grpo.yaml, line" in message
    tokenizer.pad_token, tokenizer.chat_template = "<|endoftext|>", None
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    note_digests(folder)
    assert "has no chat template" in refused()


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("reward", {"reward_funcs": ["math_answer"]}, "uses no rewards"),
        ("reward", {"eval_samples": 2}, "answers no prompts"),
        ("sft", {"eval_samples": 2}, "name `reward_funcs`"),
        ("sft", {"max_length": 8}, r"line \d+: the prompt has \d+ tokens, more than 7 \(max_length 8"),
        ("dpo", {"max_length": 8}, r"the prompt has \d+ tokens"),
        ("sft", {"loss_type": "nlll"}, "Did you mean `nll`"),
        ("dpo", {"loss_type": ["sigmoidal"]}, "sigmoid"),
        ("dpo", {"beta": -1}, "0 or more"),
        ("reward", {"center_rewards_coefficient": -0.1}, "0 or more"),
        ("sft", {"eval_strategy": "steps", "test_split_size": None}, "no held-out rows"),
        ("grpo", {"reward_funcs": None}, "reward_model_name_or_path"),
        ("reward", {"num_generations": 2}, "no such key"),
    ],
)
def test_mistakes_are_refused(recipe, tmp_path, stage, changes, message):
    with pytest.raises(UserError, match=message):
        runner.run(recipe(stage, **changes), [])
    assert not (tmp_path / stage).exists()


def test_two_processes_measure_what_one_does(recipe, tmp_path):
    path = recipe("dpo", global_batch_size=6, per_device_train_batch_size=3)
    runner.run(path, ["--output_dir", str(tmp_path / "one")])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "hpt_trl"]
    command += ["run", path, "--output_dir", str(tmp_path / "two")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert two["hardware"]["processes"] == 2
    for name in ("before", "after"):
        assert two[name]["held_out"]["loss"] == pytest.approx(one[name]["held_out"]["loss"], rel=1e-4)


def test_rows_that_are_cut_are_named(recipe, tmp_path, caplog):
    check(recipe("sft", max_length=40, conversational=False), [])
    assert not caplog.text
    check(recipe("sft", max_length=12, conversational=False), [])
    assert "more than 12 tokens (`max_length`)" in caplog.text and "sums.jsonl, line" in caplog.text

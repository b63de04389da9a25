"""Runs that train nothing, or diverge, say so and do not end as success; resumed runs have the whole's totals."""

import json

import pytest

from hpt_trl.digests import note_digests
from hpt_trl.errors import UserError
from hpt_trl.planning.check import check
from hpt_trl.runs import reporting, runner, training
from hpt_trl.runs.signs import PATIENCE
from tests.helpers.stage_runs import LORA, results, weights

CONSTANT = "tests.runs.test_health.constant"
DROPPING = {"dataloader_drop_last": True}
WARMUP = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 9}


def of_demonstrations(completions, **columns) -> list[float]:
    """1 for the rows' own answers, which no rollout of two tokens gives; 0.25 for all others."""
    return [1.0 if "It is" in str(completion) else 0.25 for completion in completions]


def constant(completions, **columns) -> list[float]:
    return [0.25] * len(completions)


@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo"])
def test_a_training_that_diverges_ends_with_the_step_and_keeps_its_checkpoint(recipe, tmp_path, stage):
    saving = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 10}
    with pytest.raises(UserError, match=r"diverged: .*step [12] .*checkpoint-1\. Lower `learning_rate` \(now 1e\+30\)"):
        runner.run(recipe(stage, learning_rate=1e30, **saving), [])
    out = tmp_path / stage
    assert (out / "checkpoint-1").is_dir() and not (out / "checkpoint-2").exists()
    assert not (out / "results.json").exists() and not (out / "model.safetensors").exists()


def test_a_last_step_that_diverges_is_no_success(recipe, tmp_path):
    with pytest.raises(UserError, match="diverged: after step 1 weights are NaN or infinite"):
        runner.run(recipe("sft", learning_rate=1e39, max_steps=1), [])
    assert not (tmp_path / "sft" / "results.json").exists() and not (tmp_path / "sft" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("stage", "changes", "why"),
    [
        ("grpo", {"reward_funcs": [CONSTANT]}, "same reward .*frac_reward_zero_std 1"),
        # Weights that only decay have learnt nothing.
        ("grpo", {"reward_funcs": [CONSTANT], "weight_decay": 0.1}, "same reward .*frac_reward_zero_std 1"),
        (
            "sft",
            {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 9, "max_steps": 1},
            "learning rate was 0 at every step",
        ),
        ("sft", {"learning_rate": 1e-44, "dtype": "bfloat16"}, "too small to change a bfloat16"),
    ],
)
def test_a_run_that_trains_nothing_says_so(recipe, tmp_path, stage, changes, why):
    with pytest.raises(UserError, match=f"nothing was trained: .*{why}"):
        runner.run(recipe(stage, **changes), [])
    found = results(tmp_path / stage)
    assert found["trained"] is False and found["steps"] == changes.get("max_steps", 4)
    assert found["why_untrained"] in reporting.summary(tmp_path / stage)


def test_what_is_trained_is_said_as_well(recipe, tmp_path):
    runner.run(recipe("sft", **LORA, max_steps=1), [])
    assert results(tmp_path / "sft")["trained"] is True


def test_a_frozen_model_is_refused(recipe, tmp_path, monkeypatch):
    runner.run(recipe("sft", **LORA, max_steps=1), [])
    trained, build = tmp_path / "sft", training.build_trainer

    def frozen(*args):
        trainer = build(*args)
        trainer.model.requires_grad_(False)
        return trainer

    monkeypatch.setattr(training, "build_trainer", frozen)
    with pytest.raises(UserError, match="no parameter of the model is trainable"):
        runner.run(recipe("sft", output_dir=str(tmp_path / "frozen")), [])
    assert results(trained)["trained"] is True


GROUPS = {"num_generations": 2, "max_completion_length": 2, "per_device_train_batch_size": 4}
TAUGHT = [
    {"unify_strategy": "switch"},
    {"unify_strategy": "soft", "soft_table": "on_off", "demonstration_reward": 1.0},
    {"unify_strategy": "soft", "soft_table": "on_sft", "offline_loss_type": "srft", "demonstration_reward": 0.25},
]


@pytest.mark.parametrize("settings", TAUGHT, ids=["sft", "luffy", "srft"])
def test_groups_without_contrast_that_are_taught_are_not_warned_of(recipe, tmp_path, caplog, settings):
    """The demonstration has a gradient, and by SRFT (here of the reward of all rollouts) the rollouts have."""
    settings = settings | GROUPS | {"reward_funcs": ["tests.runs.test_health.of_demonstrations"]}
    path = recipe("hpt", max_steps=PATIENCE + 2, temperature=1.0, **settings)
    runner.run(path, ["--eval_samples", "0"])
    assert {line["reward_std"] for line in reporting.read_metrics(tmp_path / "hpt") if "reward_std" in line} == {0.0}
    assert results(tmp_path / "hpt")["trained"] is True
    assert "without contrast" not in caplog.text


def test_ppo_learns_without_contrast_within_a_prompt(recipe, tmp_path, caplog):
    """One rollout of a prompt has no contrast, and the critic is the baseline; without a KL term just as well."""
    settings = {"num_generations": 1, "kl_coef": 0.0, "max_completion_length": 2}
    runner.run(recipe("ppo", max_steps=PATIENCE + 1, **settings), [])
    assert results(tmp_path / "ppo")["trained"] is True
    assert "without contrast" not in caplog.text


def test_what_an_epoch_saved_knows_that_nothing_was_trained(recipe, tmp_path):
    path = recipe("sft", save_strategy="epoch", num_train_epochs=2, max_steps=None, **WARMUP | {"warmup_steps": 99})
    with pytest.raises(UserError, match="nothing was trained"):
        runner.run(path, ["--learning_rate", "1e-44", "--dtype", "bfloat16"])
    (first, *_) = sorted((tmp_path / "sft").glob("checkpoint-*"), key=lambda folder: int(folder.name[11:]))
    state = json.loads((first / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["hpt_trl.health"] == {"changed": False}


def test_the_loss_of_steps_that_are_not_logged_is_kept(recipe, tmp_path):
    """An evaluation logs between a step and its checkpoint."""
    evaluating = {"eval_strategy": "steps", "eval_steps": 3, "logging_strategy": "no"}
    path = recipe("sft", save_strategy="steps", save_steps=3, max_steps=5, lr_scheduler_type="constant", **evaluating)
    runner.run(path, [])
    out = tmp_path / "sft"
    straight = results(out)["train_loss"]
    (out / "results.json").unlink()
    runner.run(path, ["--resume_from_checkpoint", str(out / "checkpoint-3")])
    assert results(out)["train_loss"] == pytest.approx(straight, rel=1e-6)


def test_tokens_are_counted_where_nothing_is_logged(recipe, tmp_path):
    path, out = recipe("sft", save_strategy="steps", save_steps=2, logging_strategy="no"), tmp_path / "sft"
    runner.run(path, [])
    straight = results(out)["tokens"]["training"]
    assert straight > 0
    for step in (4, 2):
        runner.run(path, ["--resume_from_checkpoint", str(out / f"checkpoint-{step}")])
        assert results(out)["tokens"]["training"] == straight


@pytest.mark.parametrize("stage", ["sft", "reward", "grpo"])
def test_a_resumed_run_has_the_totals_of_the_whole(recipe, tmp_path, stage):
    # Saved between two logs: what was measured since the last one is lost unless it is noted.
    path = recipe(
        stage, save_strategy="steps", save_steps=3, logging_steps=2, max_steps=5, lr_scheduler_type="constant"
    )
    runner.run(path, [])
    out = tmp_path / stage
    straight, closing = results(out), reporting.read_metrics(out)[-1 if stage == "grpo" else -2]
    (out / "results.json").unlink()
    (out / "before.json").write_text(json.dumps(straight["before"]))
    # An attempt that took an hour.
    state = json.loads((out / "checkpoint-3" / "trainer_state.json").read_text())
    totals = state["stateful_callbacks"]["hpt_trl.totals"]
    assert totals["steps"] == 3 and 0 < totals["tokens"] < straight["tokens"]["training"]
    totals["seconds"] += 3600
    totals["training_seconds"] += 3600
    totals["peak_bytes"] = 2**45
    (out / "checkpoint-3" / "trainer_state.json").write_text(json.dumps(state))
    note_digests(out / "checkpoint-3")
    runner.run(path, ["--resume_from_checkpoint", str(out / "checkpoint-3")])
    again = results(out)
    assert again["tokens"]["training"] == straight["tokens"]["training"]
    assert again["train_loss"] == pytest.approx(straight["train_loss"], rel=1e-6, abs=1e-9)
    assert again["wall_time_s"]["total"] > 3600 and again["wall_time_s"]["train"] > 3600
    assert again["wall_time_s"]["total"] > sum(again["wall_time_s"][name] for name in ("train", "evaluation"))
    assert again["hardware"]["peak_memory_gib"] == 2**15 and again["trained"] is True
    lines = reporting.read_metrics(out)
    assert [line["train_loss"] for line in lines if "train_loss" in line] == [pytest.approx(closing["train_loss"])]
    assert [line["step"] for line in lines if "loss" in line] == [2, 3, 4, 5]
    # A run that goes on from its last step takes none, and is not untrained for it.
    (out / "results.json").unlink()
    before = weights(out)
    runner.run(path, ["--resume_from_checkpoint", str(out / "checkpoint-5")])
    assert results(out)["trained"] is True and weights(out) == before
    # What is logged after the last step is not doubled, nor left out.
    assert [line.keys() for line in reporting.read_metrics(out)] == [line.keys() for line in lines]
    assert results(out)["train_loss"] == pytest.approx(straight["train_loss"], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("grpo", {"global_batch_size": 40}, r"`global_batch_size`: .* has 18 training rows, but .* takes 20 prompts"),
        ("ppo", {"steps_per_generation": 12}, r"`steps_per_generation`: .*takes 24 prompts \(48 completions / 2"),
        ("sft", {**DROPPING, "per_device_train_batch_size": 19}, r"a batch takes 19 rows \(1 process x 19\)"),
    ],
)
def test_fewer_rows_than_a_batch_are_refused(recipe, tmp_path, stage, changes, message):
    with pytest.raises(UserError, match=f"{message}.* no step would be taken"):
        check(recipe(stage, **changes), [])
    assert not (tmp_path / stage).exists()


@pytest.mark.parametrize(
    ("stage", "changes", "anew"),
    [
        ("grpo", {"global_batch_size": 16}, True),
        ("grpo", {"global_batch_size": 16, "shuffle_dataset": False}, False),
        # The samplers of rollouts and of SFT read one key each.
        ("grpo", {"global_batch_size": 16, "train_sampling_strategy": "sequential"}, True),
        ("sft", DROPPING, True),
        ("sft", {**DROPPING, "shuffle_dataset": False}, True),
        ("sft", {**DROPPING, "train_sampling_strategy": "sequential"}, False),
        ("dpo", {**DROPPING, "train_sampling_strategy": "sequential"}, False),
    ],
)
def test_rows_that_an_epoch_leaves_out_are_told(recipe, caplog, capsys, stage, changes, anew):
    check(recipe(stage, **changes), [])
    assert "each epoch leaves out 2 of the 18 training rows" in caplog.text
    assert ("drawn anew for each epoch" in caplog.text) is anew
    assert f"2 rows, {'others each time' if anew else 'always the same'}, are left out" in capsys.readouterr().out

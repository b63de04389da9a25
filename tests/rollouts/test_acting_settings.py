"""Trainers in an environment: what they log, what rewards get, what they train, and what they refuse."""

import pytest
import torch
from PIL import Image

from hpt_trl.environments.factory import TurnEnvironments
from hpt_trl.errors import UserError
from hpt_trl.runs.trajectories import read_trajectories
from tests.helpers.acted import FixedActing, Rooms, build, environments, reward_of, room_rows, train
from tests.helpers.gradients import Watched
from tests.helpers.rollouts import weights

FOLDED = {"max_images": 1}


@pytest.fixture(scope="module")
def paths(vlm_path, qwen_path, tiny_model_path):
    return {"idefics": vlm_path, "qwen": qwen_path, "text": tiny_model_path}


@pytest.fixture
def run(paths, tmp_path):
    return lambda trainer, model="idefics", **settings: train(trainer, paths[model], tmp_path, **settings)


# What is logged.


def test_what_is_logged_at_the_first_step(run):
    trainer = run("grpo", limits=FOLDED, rows={"images": True}, log_completions=True)
    log, played = trainer.state.log_history[0], trainer.played
    assert log["doors/opened"] == pytest.approx(sum(one.environment.opened for one in played) / 16)
    assert log["environment/cut"] == pytest.approx(sum(one.ended in ("tokens", "context") for one in played) / 16)
    assert log["completions/mean_length"] == pytest.approx(sum(one.drawn for one in played) / 16)
    drawn, prompts = sum(one.drawn for one in played), sum(len(one.prompt.ids) for one in played)
    assert log["num_tokens"] == drawn + prompts
    assert len(trainer._logs["completion"]) == 16 and not trainer._logs["images"]
    for messages in trainer._logs["completion"]:
        assert {message["role"] for message in messages} <= {"assistant", "user"}
        assert all(isinstance(message["content"], str) for message in messages)


def test_rollouts_of_a_group_are_left_for_reading(run, tmp_path):
    trainer = run("hpt", rows={"kinds": ["mixed"] * 4}, log_completions=True)
    left = list(read_trajectories(tmp_path))
    assert [(one.id, one.mode, one.step) for one in left] == [(f"train-1-{place}", "train", 1) for place in range(4)]
    for one, episode in zip(left, trainer.played[:4], strict=True):
        assert [(turn.role, turn.text) for turn in one.turns] == [
            (turn["role"], turn["text"]) for turn in episode.record
        ]
        assert one.facts["opened"] == episode.environment.opened
        assert one.rewards == {"said_reward": reward_of("mixed", episode.environment.said, episode.environment.opened)}
        for image in (image for turn in one.turns for image in turn.images):
            assert Image.open(one.folder / image.file).size == (32, 32)
    run("hpt", rows={"kinds": ["mixed"] * 4})
    assert len(list(read_trajectories(tmp_path))) == 4


def test_padding_is_that_of_the_contexts(run, monkeypatch):
    watched = Watched(monkeypatch)
    trainer = run("hpt", limits=FOLDED)
    area = sum(ids.numel() for ids, _ in watched.passes)
    live = sum(int((ids != trainer._tokenizer.pad_token_id).sum()) for ids, _ in watched.passes)
    assert trainer.state.log_history[0]["hpt/padding"] == pytest.approx(area / live - 1, rel=1e-5)


def test_rewards_get_the_columns_of_the_row_its_images_and_the_facts(run):
    seen = []

    def looks(prompts, completions, images, kind, opened, turns, ended, **columns):
        seen.extend(zip(images, turns, ended, strict=True))
        assert {"said", "completion_ids", "trainer_state"} <= columns.keys()
        return [0.0] * len(prompts)

    run("grpo", rows={"images": True}, reward=looks)
    assert len(seen) == 16 and all(len(images) == 1 for images, _, _ in seen)
    assert {ended for _, _, ended in seen} == {"answer", "turns", "tokens"}


# Other models and settings.


@pytest.mark.parametrize("trainer", ["grpo", "hpt", "sft"])
def test_adapters_checkpointing_and_autocast(run, trainer):
    settings = {"gradient_checkpointing": True, "bf16": True, "max_steps": 2, "optim": "adamw_torch"}
    settings |= {} if trainer == "sft" else {"lora": True, "beta": 0.1}
    ours = run(trainer, model="qwen", limits=FOLDED, learning_rate=1e-2, **settings)
    assert ours.state.log_history[0]["grad_norm"] > 0
    assert all(torch.isfinite(p).all() for p in weights(ours).values())


def test_an_evaluation_between_the_steps(run, paths, tmp_path):
    trainer = build("grpo", paths["idefics"], tmp_path, limits=FOLDED, num_generations_eval=4)
    found = trainer.evaluate(room_rows())
    assert found["eval_doors/opened"] > 0 and 0 <= found["eval_reward"] <= 1


# What may not stand beside an environment.


@pytest.mark.parametrize("name", ["tools", "rollout_func", "environment_factory"])
def test_another_way_to_go_on_after_a_turn_is_refused(paths, tmp_path, name):
    class Both(FixedActing):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | {name: [len] if name == "tools" else len})

    with pytest.raises(ValueError, match=f"`{name}` beside `environment`"):
        build(Both, paths["text"], tmp_path)


def test_continuous_batching_is_refused(paths, tmp_path):
    with pytest.raises(ValueError, match="use_transformers_continuous_batching"):
        build("grpo", paths["text"], tmp_path, use_transformers_continuous_batching=True)


def test_images_need_a_model_that_sees_them(paths, tmp_path):
    with pytest.raises(UserError, match="vision-language"):
        train("grpo", paths["text"], tmp_path, environment=environments(True))


def test_facts_are_told_of_every_rollout(run):
    class Some(Rooms):
        def facts(self):
            return super().facts() | ({"late": 1} if self.opened > 1 else {})

    with pytest.raises(UserError, match="`late` of some rollouts alone"):
        run("grpo", model="text", environment=TurnEnvironments(lambda: Some(False)))

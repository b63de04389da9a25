"""Rollouts in an environment, through `.train()`: stock TRL's update, and what has a gradient."""

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer, SFTTrainer

from tests.helpers.acted import (
    DEFAULTS,
    GROUP,
    MAX_TURNS,
    ROLLOUTS,
    SYSTEM,
    fixed_turn,
    loaded,
    room_rows,
    said_reward,
    start_of,
    train,
)
from tests.helpers.environments import SHADES
from tests.helpers.gradients import Watched, trained_runs
from tests.helpers.rollouts import assert_same_update, weights

FOLDED = {"max_images": 1}
END = "<|im_end|>"


@pytest.fixture(scope="module")
def paths(vlm_path, qwen_path, tiny_model_path):
    return {"idefics": vlm_path, "qwen": qwen_path, "text": tiny_model_path}


@pytest.fixture
def run(paths, tmp_path):
    return lambda trainer, model="idefics", **settings: train(trainer, paths[model], tmp_path, **settings)


# Stock TRL with the same turns.


def replayed(prompts, trainer):
    """The fixed turns as a `rollout_func` of TRL: whole conversations in ChatML, written by hand."""
    tokenizer = trainer.processing_class

    def ids(text):
        return tokenizer(text)["input_ids"]

    found = {name: [] for name in ("prompt_ids", "completion_ids", "env_mask", "said", "opened")}
    for place, prompt in enumerate(prompts):
        words = prompt[0]["content"]
        text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\n"
        completion, mask, said, opened = [], [], "", 0
        for turn in range(MAX_TURNS):
            spoken, cut = fixed_turn(words, place % GROUP, turn, trainer.state.global_step)
            own = ids(spoken) + ([] if cut else ids(END))
            completion, mask, said = completion + own, mask + [1] * len(own), said + spoken
            opened += "out" not in spoken
            if cut or "out" in spoken or turn == MAX_TURNS - 1:
                break
            shade = SHADES[opened % len(SHADES)]
            seen = f"\n<|im_start|>user\nA door of shade {shade}.<|im_end|>\n<|im_start|>assistant\n"
            completion, mask = completion + ids(seen), mask + [0] * len(ids(seen))
        values = (ids(text), completion, mask, said, opened)
        for name, value in zip(found, values, strict=True):
            found[name].append(value)
    return found | {"logprobs": None}


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "grpo"},
        {"loss_type": "dapo", "mask_truncated_completions": True},
        {"loss_type": "dr_grpo", "beta": 0.2, "num_iterations": 2, "max_steps": 2, "learning_rate": 0.3},
    ],
    ids=["grpo", "masked-dapo", "kl-iterations"],
)
def test_stock_trl_makes_the_same_update(paths, run, tmp_path, settings):
    ours = run("grpo", model="text", **settings)
    model, tokenizer = loaded(paths["text"])
    config = GRPOConfig(**ROLLOUTS | DEFAULTS | settings, output_dir=str(tmp_path))
    stock = GRPOTrainer(model, said_reward, config, room_rows(), processing_class=tokenizer, rollout_func=replayed)
    stock.train()
    assert_same_update(weights(ours), weights(stock), start_of(paths["text"]), 1e-5)
    for name in ("loss", "reward", "completions/mean_length", "completions/clipped_ratio", "entropy", "num_tokens"):
        assert ours.state.log_history[0][name] == pytest.approx(stock.state.log_history[0][name], rel=1e-5), name


# What has a gradient.


def spoken(rows, *, trajectories=False):
    """The turns of all rollouts at the first step, or those of all trajectories, sorted."""
    found = []
    for row in rows:
        if trajectories:
            found += [message["content"] + END for message in row["completion"]]
            continue
        for member in range(GROUP):
            for turn in range(MAX_TURNS):
                text, cut = fixed_turn(row["prompt"][0]["content"], member, turn, 0)
                found.append(text + ("" if cut else END))
                if cut or "out" in text:
                    break
    return sorted(found)


def rising(completions, **_):
    """Another reward for each rollout of a group: all of them have an advantage."""
    return [float(place % GROUP) for place in range(len(completions))]


@pytest.mark.parametrize("model,limits", [("idefics", {}), ("idefics", FOLDED), ("qwen", {}), ("qwen", FOLDED)])
def test_only_what_the_model_drew_has_a_gradient(run, monkeypatch, model, limits):
    watched = Watched(monkeypatch)
    trainer = run("grpo", model=model, limits=limits, reward=rising, beta=0.1)
    tokenizer = trainer.processing_class.tokenizer
    assert watched.runs(tokenizer) == spoken(room_rows())
    image = trainer.processing_class.image_token_id
    # Idefics3 and this Qwen2.5-VL have 16 tokens for a door; a turn that is folded is read with its own one alone.
    doors = sum(int((ids == image).sum()) for ids, _ in watched.passes) / 16
    shown = [sum(turn["role"] == "environment" for turn in episode.record) for episode in trainer.played]
    assert doors == sum(shown) > 0
    grads = [p.grad for p in trainer.model.parameters()]
    assert all(grad is None or torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("model", ["idefics", "qwen"])
def test_of_trajectories_only_the_turns_have_a_gradient(run, monkeypatch, model):
    watched = Watched(monkeypatch)
    trainer = run("hpt", model=model, limits=FOLDED, switch_gate=GROUP)
    assert watched.runs(trainer.processing_class.tokenizer) == spoken(room_rows(), trajectories=True)
    labelled = []
    stock = SFTTrainer.compute_loss

    def looked_at(self, model, inputs, *args, **kwargs):
        labelled.append((inputs["input_ids"], inputs["labels"]))
        return stock(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "compute_loss", looked_at)
    trainer = run("sft", model=model, limits=FOLDED, per_device_train_batch_size=2)
    tokenizer, found = trainer.processing_class.tokenizer, []
    for ids, labels in labelled:
        assert (labels[labels != -100] == ids[labels != -100]).all()
        found += trained_runs(ids, labels != -100, tokenizer)
    assert sorted(found) == spoken(room_rows(), trajectories=True)

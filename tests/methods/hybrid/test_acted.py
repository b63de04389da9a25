"""HybridPostTrainer in an environment: what must be equal, through `.train()`, for text and for images."""

import pytest
import torch
from datasets import Dataset

from hpt_trl import UserError
from hpt_trl.environments.factory import TurnEnvironments
from tests.helpers.acted import GROUP, Rooms, room_rows, start_of, train
from tests.helpers.acted_oracle import Oracle
from tests.helpers.oracle import token_mean_nll
from tests.helpers.rollouts import as_update, assert_same_update, weights

FOLDED = {"max_images": 1}


@pytest.fixture(scope="module")
def paths(vlm_path, qwen_path, tiny_model_path):
    return {"idefics": vlm_path, "qwen": qwen_path, "text": tiny_model_path}


@pytest.fixture(scope="module")
def starts(paths):
    return {name: start_of(path) for name, path in paths.items()}


@pytest.fixture
def run(paths, tmp_path):
    return lambda trainer, model="idefics", **settings: train(trainer, paths[model], tmp_path, **settings)


@pytest.mark.parametrize(
    "model,limits,loss_type",
    [
        ("idefics", {}, "grpo"),
        ("idefics", FOLDED, "dapo"),
        ("qwen", FOLDED, "cispo"),
        ("text", {}, "luspo"),
    ],
)
def test_a_gate_never_closed_is_grpo_bit_for_bit(run, starts, model, limits, loss_type):
    settings = {"limits": limits, "loss_type": loss_type, "model": model, "max_steps": 2}
    settings |= {"epsilon_high": 5.0} if loss_type == "cispo" else {}
    grpo = weights(run("grpo", **settings))
    ours = weights(run("hpt", switch_gate=-1, skip_dead_rows=False, **settings))
    assert all(torch.equal(ours[name], grpo[name]) for name in grpo)
    # Rows without a gradient are left out, and nothing changes.
    trainer = run("hpt", switch_gate=-1, **settings)
    assert trainer.state.log_history[0]["hpt/rows_kept"] == 0.5
    assert_same_update(weights(trainer), grpo, starts[model])
    seen = [name for name in grpo if "vision" in name or "visual" in name]
    assert (model == "text") == (not any((grpo[name] != starts[model][name]).any() for name in seen))


@pytest.mark.parametrize(
    "model,limits,rows",
    [
        ("idefics", FOLDED, {}),
        ("idefics", FOLDED, {"images": True}),
        ("qwen", {}, {"pictures": [True, False, True, False]}),
        ("text", {}, {}),
    ],
    ids=["idefics", "own-images", "qwen", "text"],
)
def test_a_gate_always_closed_is_sft_on_the_trajectories(run, paths, starts, model, limits, rows):
    """The same step as the stage `sft` on the same rows, and as cross-entropy by the oracle."""
    settings = {"limits": limits, "rows": rows, "model": model}
    hpt = run("hpt", switch_gate=GROUP, **settings)
    assert hpt.state.log_history[0]["hpt/sft_fraction"] == 1.0
    sft = run("sft", per_device_train_batch_size=2, **settings)
    assert_same_update(weights(hpt), weights(sft), starts[model])
    oracle = Oracle(paths[model], room_rows(**rows), limits.get("max_images"))
    expected = oracle.gradient(lambda prompts: token_mean_nll(prompts, lambda p: 1.0))
    assert_same_update(weights(sft), as_update(expected, starts[model]), starts[model])


@pytest.mark.parametrize("model,loss_type", [("idefics", "dapo"), ("qwen", "grpo")])
def test_the_same_update_however_rows_are_dealt(run, starts, model, loss_type):
    """Beside rollouts that are computed or left out, in micro-batches with images or without one."""
    settings = {"limits": FOLDED, "loss_type": loss_type, "model": model}
    settings["rows"] = {"pictures": [True, False, False, True]}
    reference = weights(run("hpt", skip_dead_rows=False, **settings))
    assert_same_update(weights(run("hpt", **settings)), reference, starts[model])
    for size in (1, 16):
        dealt = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 16 // size}
        assert_same_update(weights(run("hpt", **settings, **dealt)), reference, starts[model])


def test_trajectories_of_several_lengths_are_all_there_is(run, starts):
    """Where no rollout has a token of its own left, the trajectories are trained as ever."""
    settings = {"switch_gate": GROUP, "limits": FOLDED}
    masked = run("hpt", mask_truncated_completions=True, beta=0.0, skip_dead_rows=False, **settings)
    assert_same_update(weights(masked), weights(run("hpt", **settings)), starts["idefics"])


# What may not be.


class Fickle(Rooms):
    """Writes another prompt each time."""

    count = 0

    def prompt(self, messages):
        Fickle.count += 1
        return [{"role": "system", "content": "Open doors." * Fickle.count}, *messages]


def test_a_trajectory_with_another_prompt_than_its_rollouts_is_refused(run):
    with pytest.raises(UserError, match="another prompt for a trajectory"):
        run("hpt", model="text", environment=TurnEnvironments(lambda: Fickle(False)))


def test_a_trajectory_without_room_for_a_turn_trains_nothing(run, starts):
    """Rollouts have shorter turns, for which there is room."""
    prompt = run("hpt", model="text", switch_gate=-1).played[0].prompt
    limits = {"max_turn_length": 4, "max_context_length": len(prompt.ids) + 8}
    trainer = run("hpt", model="text", limits=limits, switch_gate=GROUP)
    log = trainer.state.log_history[0]
    assert log["hpt/sft_fraction"] == log["hpt/demonstrations_truncated"] == 1.0 and log["hpt/sft_loss"] == 0.0
    assert all(torch.equal(p, starts["text"][name]) for name, p in weights(trainer).items())


def test_a_row_without_a_trajectory(run):
    rows = room_rows().to_list()
    rows[0]["completion"] = None
    rows = Dataset.from_list(rows)
    with pytest.raises(UserError, match="on_missing_demonstration"):
        run("hpt", model="text", rows=rows.to_iterable_dataset())
    kept = run("hpt", model="text", rows=rows, on_missing_demonstration="rl")
    assert kept.state.log_history[0]["hpt/sft_fraction"] == 0.0


def test_a_length_of_demonstrations_says_nothing_here(run):
    with pytest.raises(ValueError, match="max_context_length"):
        run("hpt", model="text", max_demonstration_length=8)

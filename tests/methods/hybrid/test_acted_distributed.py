"""Two processes in an environment train what one does: real launches over gloo, whatever each of them has to show."""

import pytest
import torch

from tests.helpers.acted import start_of, train
from tests.helpers.processes import launch
from tests.helpers.rollouts import assert_same_update, weights

# The order of the prompts is kept: the first process holds the first half.
KINDS = ["fail", "mixed", "solve", "mixed", "fail", "mixed", "mixed", "fail"]
LEFT_EARLY = {"kinds": KINDS, "short": [0, 1, 2, 3]}
# The second process never sees an image, the first ends earlier.
BLIND = LEFT_EARLY | {"pictures": [True] * 4 + [False] * 4}
FOLDED = {"max_images": 1}
# Without a search for weights that a backward pass has not reached: each process has to reach them all.
EACH_REACHED = {"ddp_find_unused_parameters": False}
METRICS = (
    "loss",
    "hpt/solved_mean",
    "hpt/sft_fraction",
    "hpt/rows_kept",
    "hpt/rl_loss",
    "hpt/sft_loss",
    "hpt/demo_nll",
)
MEASURES = ("reward", "entropy", "doors/opened", "environment/cut", "num_tokens", "completions/mean_length")


def assert_two_are_one(path, folder, trainer, metrics, batch, **settings):
    """One step in two processes against the same in one, of the same micro-batches."""
    one = train(trainer, path, folder, **settings, per_device_train_batch_size=2 * batch)
    settings |= {"module": "tests.helpers.acted", "trainer": trainer}
    two, log = launch(path, folder / "two", **settings, per_device_train_batch_size=batch)
    assert_same_update(two, weights(one), start_of(path))
    expected = one.state.log_history[0]
    for name in metrics:
        assert log[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize(
    "model,settings",
    [
        ("idefics", {"rows": BLIND, "limits": FOLDED, "loss_type": "dapo"}),
        pytest.param("idefics", {"rows": LEFT_EARLY, "gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param("qwen", {"rows": BLIND, "limits": FOLDED, "skip_dead_rows": False}, marks=pytest.mark.slow),
        pytest.param("qwen", {"rows": BLIND, "gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param("text", {"rows": LEFT_EARLY, "loss_type": "dr_grpo"}, marks=pytest.mark.slow),
        pytest.param(
            "idefics",
            {"rows": BLIND, "limits": FOLDED, "unify_strategy": "soft", "soft_table": "on_off"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_hpt(vlm_path, qwen_path, tiny_model_path, tmp_path, model, settings):
    path = {"idefics": vlm_path, "qwen": qwen_path, "text": tiny_model_path}[model]
    settings = {"shuffle_dataset": False, "gradient_accumulation_steps": 4} | EACH_REACHED | settings
    names = METRICS if "soft_table" not in settings else ("hpt/demonstration_reward", "hpt/off_loss", "hpt/rl_loss")
    assert_two_are_one(path, tmp_path, "hpt", (*names, *MEASURES), 4, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["idefics", "qwen"])
def test_one_process_draws_while_the_other_has_ended(vlm_path, qwen_path, tmp_path, model):
    """Rollouts of the first have one turn and show images, those of the second three turns of texts."""
    path = {"idefics": vlm_path, "qwen": qwen_path}[model]
    settings = {"module": "tests.helpers.acted", "trainer": "drawing", "rows": BLIND, "shuffle_dataset": False}
    settings |= {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.1}
    moved, log = launch(path, tmp_path / "two", **settings)
    assert log["completions/max_length"] == 3 and log["doors/opened"] == 1.5 and log["environment/cut"] == 0
    assert all(torch.isfinite(p).all() for p in moved.values()) and log["grad_norm"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("model", ["idefics", "qwen"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_grpo(vlm_path, qwen_path, tmp_path, model, checkpointing):
    path = {"idefics": vlm_path, "qwen": qwen_path}[model]
    settings = {"shuffle_dataset": False, "gradient_accumulation_steps": 4, "gradient_checkpointing": checkpointing}
    settings |= EACH_REACHED | {"max_steps": 2, "learning_rate": 0.1}
    assert_two_are_one(path, tmp_path, "grpo", ("loss", *MEASURES), 4, rows=BLIND, limits=FOLDED, **settings)


@pytest.mark.parametrize(
    "model,checkpointing",
    [
        ("qwen", True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("idefics", True), ("idefics", False)]),
    ],
)
def test_sft(vlm_path, qwen_path, tmp_path, model, checkpointing):
    """Rows are dealt in turn: every other one has no image."""
    path = {"idefics": vlm_path, "qwen": qwen_path}[model]
    rows = {"kinds": KINDS, "pictures": [True, False] * 4}
    settings = {"gradient_accumulation_steps": 4, "gradient_checkpointing": checkpointing, "limits": FOLDED}
    # What a process left out of the reduction of a step is told at the next.
    settings |= EACH_REACHED | {"train_sampling_strategy": "sequential", "max_steps": 2, "learning_rate": 0.1}
    assert_two_are_one(path, tmp_path, "sft", ("loss", "mean_token_accuracy", "entropy"), 1, rows=rows, **settings)

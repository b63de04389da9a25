"""Two processes train what one process trains: real `torchrun` launches over gloo."""

import pytest

from tests.helpers.processes import launch
from tests.helpers.rollouts import FixedHPT, assert_same_update, start_weights, train, weights

# The order of the prompts is kept, so that the first process holds the first half.
ALL_DEAD_ON_FIRST = ["solve", "solve", "solve", "solve", "mixed", "fail", "mixed", "mixed"]
ALL_DEMONSTRATED = ["fail"] * 8
SPREAD = ["fail", "mixed", "solve", "mixed", "fail", "mixed", "fail", "solve"]


@pytest.mark.parametrize(
    "kinds,settings",
    [
        (SPREAD, {"loss_type": "dapo"}),
        (SPREAD, {"loss_type": "grpo", "unify_strategy": "soft", "sft_loss_normalization": "prompt"}),
        (ALL_DEAD_ON_FIRST, {"loss_type": "grpo"}),
        (ALL_DEMONSTRATED, {"loss_type": "dr_grpo"}),
        # One group of 16 lies across both processes.
        (["mixed", "fail"], {"loss_type": "grpo", "num_generations": 16, "shuffle_dataset": False}),
        (["fail"], {"loss_type": "grpo", "num_generations": 32}),
        (SPREAD, {"loss_type": "grpo", "skip_dead_rows": False}),
    ],
    ids=["dapo", "soft", "dead-rank", "all-demonstrated", "two-groups", "one-group", "nothing-dropped"],
)
def test_two_processes_are_one(tiny_model_path, tmp_path, kinds, settings):
    settings = {"shuffle_dataset": False} | settings
    one = train(FixedHPT, tiny_model_path, tmp_path, kinds=kinds, **settings)
    two, log = launch(
        tiny_model_path,
        tmp_path / "two",
        trainer="FixedHPT",
        kinds=kinds,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=one.args.gradient_accumulation_steps,
        **settings,
    )
    assert_same_update(two, weights(one), start_weights(tiny_model_path))
    expected = one.state.log_history[0]
    for name in ("hpt/solved_mean", "hpt/sft_fraction", "hpt/rows_kept", "hpt/rl_loss", "hpt/sft_loss", "loss"):
        assert log[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
    if settings.get("skip_dead_rows", True):
        # Of the rollouts of all processes, also where the first has none; nothing where none has one.
        assert ("entropy" in log) == ("entropy" in expected)
        assert log.get("entropy", 0.0) == pytest.approx(expected.get("entropy", 0.0), rel=1e-3)

"""Two processes train what one process trains: real `torchrun` launches over gloo."""

import pytest

from tests.helpers.processes import assert_two_processes_are_one

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
        (SPREAD, {"loss_type": "dapo", "turns": 3}),
        (SPREAD, {"loss_type": "grpo", "entropy_coef": 0.001, "mask_truncated_completions": True}),
    ],
    ids=[
        "dapo",
        "soft",
        "dead-rank",
        "all-demonstrated",
        "two-groups",
        "one-group",
        "nothing-dropped",
        "turns",
        "bonus",
    ],
)
def test_two_processes_are_one(tiny_model_path, tmp_path, kinds, settings):
    names = ["hpt/solved_mean", "hpt/sft_fraction", "hpt/rows_kept", "hpt/sft_loss"]
    # A bonus is a mean of the means of micro-batches, which are others here: TRL's value depends on them.
    names += [] if "entropy_coef" in settings else ["hpt/rl_loss", "loss"]
    settings = {"shuffle_dataset": False, "kinds": kinds} | settings
    expected, log = assert_two_processes_are_one(tiny_model_path, tmp_path, names, **settings)
    if settings.get("skip_dead_rows", True):
        # Of the rollouts of all processes, also where the first has none; not known where none has one.
        one, two = expected["entropy"], log["entropy"]
        assert (one is None) == (two is None) == (kinds in (ALL_DEMONSTRATED, ["fail"]))
        assert one is None or two == pytest.approx(one, rel=1e-3)

"""A run in an environment that was stopped goes on as if it had not been: its contexts are saved with the rollouts."""

import pytest
import torch

from tests.helpers.acted import train
from tests.helpers.rollouts import weights

# 4 prompts, 2 a generation batch, 2 mini-batches each, each trained twice: step 3 is inside of a generation batch.
SETTINGS = {
    "num_generations": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "generation_batch_size": 4,
    "num_iterations": 2,
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "beta": 0.05,
    "max_steps": 6,
    "save_strategy": "steps",
}


@pytest.mark.parametrize(
    "trainer,stopped,settings",
    [
        ("grpo", 3, {}),
        ("grpo", 4, {}),
        ("hpt", 3, {}),
        ("hpt", 1, {"unify_strategy": "soft", "soft_table": "on_off", "beta": 0.0}),
    ],
    ids=["grpo-inside-a-generation", "grpo-between-two", "hpt", "luffy"],
)
def test_a_resumed_run_is_one_that_never_stopped(vlm_path, tmp_path, trainer, stopped, settings):
    settings = SETTINGS | {"save_steps": stopped, "limits": {"max_images": 1}} | settings
    whole = train(trainer, vlm_path, tmp_path, **settings)
    checkpoint = tmp_path / f"checkpoint-{stopped}"
    buffered = (checkpoint / "rollouts_0.pt").stat().st_size > 10_000
    assert buffered == bool(stopped % 4)
    resumed = train(trainer, vlm_path, tmp_path, **settings, resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 6
    one, other = weights(whole), weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)

"""Resume of the trainers on rollouts where TRL 1.16 diverges: inside of a generation batch, and in a later epoch."""

import pytest
import torch
from trl.trainer.utils import RepeatSampler

from hpt_trl import HybridPostTrainer
from hpt_trl.rollouts.trainer import EpochSampler, RolloutTrainer
from tests.helpers.rollouts import train, weights

# 8 prompts, 4 a generation batch, 2 mini-batches each: steps 1 to 4 are the first epoch.
SETTINGS = {
    "num_generations": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "generation_batch_size": 8,
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "max_steps": 7,
    "save_strategy": "steps",
}


@pytest.mark.parametrize("stopped", [1, 2, 5], ids=["inside-a-generation", "between-two", "second-epoch"])
@pytest.mark.parametrize("trainer_class", [RolloutTrainer, HybridPostTrainer])
def test_a_resumed_run_is_one_that_never_stopped(tiny_model_path, tmp_path, trainer_class, stopped):
    settings = SETTINGS | {"save_steps": stopped}
    whole = train(trainer_class, tiny_model_path, tmp_path, **settings)
    checkpoint = str(tmp_path / f"checkpoint-{stopped}")
    resumed = train(trainer_class, tiny_model_path, tmp_path, **settings, resume_from_checkpoint=checkpoint)
    assert resumed.state.global_step == 7
    one, other = weights(whole), weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_epochs_are_in_the_order_of_the_stock_sampler():
    settings = {"mini_repeat_count": 2, "batch_size": 4, "repeat_count": 2, "seed": 7}
    stock = RepeatSampler(range(8), **settings)
    drawn = [list(stock) for _ in range(3)]
    assert drawn[0] != drawn[1] != drawn[2]
    # Each epoch by itself, as a resumed run begins with it.
    assert [list(EpochSampler(range(8), epoch=lambda e=e: e, **settings)) for e in range(3)] == drawn

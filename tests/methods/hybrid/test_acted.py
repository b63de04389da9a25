"""HPT and GRPO in an environment that shows images: the losses, the identities, and what has no gradient."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from trl import GRPOConfig

from hpt_trl import HybridPostConfig
from hpt_trl.environments.factory import TurnEnvironments
from tests.helpers.environments import Doors, FixedActedHPT, FixedActing, door_rows, turn_reward
from tests.helpers.rollouts import assert_same_update, weights


def environments(pictures=True, **limits) -> TurnEnvironments:
    return TurnEnvironments(lambda: Doors(pictures), **limits)


@pytest.fixture
def run(vlm_path, tiny_model_path, tmp_path):
    def run(trainer_class=FixedActedHPT, environment=None, text=False, rows=None, **settings):
        environment = environments(not text) if environment is None else environment
        config_class = HybridPostConfig if issubclass(trainer_class, FixedActedHPT) else GRPOConfig
        defaults = {
            "output_dir": str(tmp_path),
            "num_generations": 4,
            "max_completion_length": 80,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "max_steps": 1,
            "learning_rate": 1.0,
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
            "use_cpu": True,
            "loss_type": "grpo",
            "disable_tqdm": True,
        }
        path = tiny_model_path if text else vlm_path
        loader = AutoModelForCausalLM if text else AutoModelForImageTextToText
        processor = AutoTokenizer if text else AutoProcessor
        trainer = trainer_class(
            loader.from_pretrained(path, dtype=torch.float32),
            turn_reward,
            config_class(**defaults | settings),
            door_rows() if rows is None else rows,
            processing_class=processor.from_pretrained(path),
            environment=environment,
        )
        trainer.train()
        return trainer

    return run


@pytest.fixture(scope="module")
def start(vlm_path):
    return {n: p.detach() for n, p in AutoModelForImageTextToText.from_pretrained(vlm_path).named_parameters()}


def test_a_gate_never_closed_is_grpo_bit_for_bit(run):
    grpo = weights(run(FixedActing))
    ours = weights(run(switch_gate=-1, skip_dead_rows=False))
    assert all(torch.equal(ours[name], grpo[name]) for name in grpo)


def test_rows_without_gradient_are_left_out_and_nothing_changes(run, start):
    grpo = weights(run(FixedActing))
    trainer = run(switch_gate=-1)
    assert trainer.state.log_history[0]["hpt/rows_kept"] <= 0.5
    assert_same_update(weights(trainer), grpo, start)
    assert any((grpo[name] != start[name]).any() for name in grpo if "vision" in name)


@pytest.mark.parametrize("limits", [{}, {"max_images": 1}])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_demonstrations_train_alike_however_rows_are_dealt(run, start, limits, loss_type):
    settings = {"switch_gate": 0, "loss_type": loss_type, "environment": environments(**limits)}
    reference = run(skip_dead_rows=False, **settings)
    assert reference.state.log_history[0]["hpt/sft_fraction"] > 0
    assert_same_update(weights(run(**settings)), weights(reference), start)
    single = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
    assert_same_update(weights(run(**settings, **single)), weights(reference), start)

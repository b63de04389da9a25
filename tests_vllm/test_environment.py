"""Rollouts of several turns by vLLM: what it drew and with which probability is what the trainer takes it for."""

import pytest

from tests_vllm.launch import logged, run_command, write_recipe

pytestmark = pytest.mark.timeout(1800)


@pytest.mark.parametrize("stage", ["grpo", "hpt"])
def test_turns_that_vllm_draws_are_those_that_are_trained(stage, model_path, tmp_path):
    # A turn of random weights comes to its end by chance: it must be long to be followed by another.
    environment = {"environment": "tests_vllm.runs.Counting", "max_turns": 3, "max_turn_length": 120}
    keys = {"vllm": "colocate", "max_completion_length": 360, "max_steps": 2, **environment}
    if stage == "hpt":
        # Its demonstrations are no trajectories of several turns: the gate stays open.
        keys["switch_gate"] = -1
    recipe = write_recipe(tmp_path / f"{stage}.yaml", stage, model_path, **keys)
    run_command("run", recipe)
    steps = logged(tmp_path / stage)
    assert len(steps) == 2 and all(step["grad_norm"] > 0 for step in steps)
    assert max(step["counting/turns"] for step in steps) > 1
    # But for the engine's bfloat16 the probabilities are the trainer's: tokens and turns lie where they were drawn.
    differences = [step["sampling/sampling_logp_difference/mean"] for step in steps]
    assert all(0 < difference < 0.1 for difference in differences), differences

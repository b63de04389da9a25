"""The three stages train with vLLM in the training process, and the engine's weights are the trainer's.

After the training the trainer's engine answers greedily; an engine that has just loaded the saved model must answer the
same, token for token, and one with the start model something else. `VLLM_PLUGINS` shuts out the tests' plugin there:
what makes the CPU engine take weights is the package's own.
"""

import json

import pytest

from hpt_trl.models.merging import merge_adapter
from tests_vllm.launch import STAGES, fresh_answers, logged, run, write_recipe

# Engines take half a minute to start on two busy cores.
pytestmark = pytest.mark.timeout(1800)


def test_three_stages_train_and_their_engines_have_the_trained_weights(model_path, tmp_path):
    keys = {
        "hpt": {"vllm": "auto"},
        "grpo": {"vllm": "colocate", "use_peft": True, "lora_r": 8, "lora_dropout": 0.0, "learning_rate": 0.01},
        "ppo": {"vllm": "colocate"},
    }
    found, saved = {}, []
    for stage in STAGES:
        recipe = write_recipe(tmp_path / f"{stage}.yaml", stage, model_path, **keys[stage])
        said = run("train", tmp_path / f"{stage}.json", recipe, VLLM_PLUGINS="")
        found[stage] = json.loads((tmp_path / f"{stage}.json").read_text())
        saved.append(tmp_path / stage)
        if stage == "hpt":
            assert "rollouts: vLLM, colocate (vllm: auto; vLLM 0.30.0+cpu works on this device)" in said
        steps = logged(tmp_path / stage)
        assert len(steps) == 3 and all(step["grad_norm"] > 0 for step in steps)
        # The policy that sampled is the one that is trained, but for the engine's bfloat16.
        key = "sampling/sampling_logp_difference/mean"
        differences = [step[key] for step in steps if key in step]
        assert len(differences) >= 2 and all(0 < difference < 0.1 for difference in differences), differences
        assert all("value_head" not in name and "lora" not in name for name in found[stage]["sent"])
        assert "model.embed_tokens.weight" in found[stage]["sent"]
    assert any(0 < step["hpt/sft_fraction"] < 1 for step in logged(tmp_path / "hpt"))
    saved[1] = tmp_path / "merged"
    merge_adapter(tmp_path / "grpo", saved[1])

    start = fresh_answers(tmp_path, model_path)
    for stage, folder in zip(STAGES, saved, strict=True):
        answers = fresh_answers(tmp_path, folder)
        assert found[stage]["answers"] == answers, stage
        assert len({token for answer in answers for token in answer}) > 5, (stage, answers)
        assert all(a != b for a, b in zip(answers, start, strict=True)), (stage, answers)

"""A reference that moves with the policy (`sync_ref_model`): DPO's survives a resume, a spread one is refused."""

import pytest

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.models.moving_reference import REFERENCE_FILE
from hpt_trl.runs import runner
from tests.helpers.stage_runs import weights

MOVING = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5, "beta": 1.0}


def test_a_moving_reference_goes_on_where_it_was(recipe, tmp_path):
    path = recipe("dpo", save_strategy="steps", save_steps=2, learning_rate=1e-2, **MOVING)
    runner.run(path, [])
    out = tmp_path / "dpo"
    straight = weights(out)
    checkpoint = out / "checkpoint-2"
    runner.run(path, ["--resume_from_checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "resumed")])
    assert weights(tmp_path / "resumed") == straight
    # A checkpoint of a former version does not say what its files were.
    for name in (REFERENCE_FILE, "digests.json", "run.json"):
        (checkpoint / name).unlink()
    with pytest.raises(UserError, match="sync_ref_model"):
        runner.run(path, ["--resume_from_checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "lost")])


@pytest.mark.parametrize("stage", ["dpo", "grpo", "hpt"])
@pytest.mark.parametrize("profile", ["fsdp2", "zero3"])
def test_one_whose_weights_are_spread_is_refused_before_anything_is_loaded(recipe, capsys, stage, profile):
    rollouts = {"num_generations": 2, "reward_funcs": ["tests.helpers.stage_runs.remainder"], "success_threshold": 3.0}
    keys = MOVING | {"max_completion_length": 8} | (rollouts if stage == "hpt" else {})
    path = recipe(stage, save_strategy="steps", use_cpu=None, **(MOVING if stage == "dpo" else keys))
    words = ["--accelerate", profile, "--num_processes", "2"]
    assert main(["check", path, *words]) == 2
    assert "`sync_ref_model`: true under FSDP or ZeRO-3" in capsys.readouterr().err
    assert main(["check", path, *words, "--save_strategy", "no"]) == 0

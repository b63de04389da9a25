"""A reference that moves with the policy (`sync_ref_model`): DPO's survives a resume, a spread one is refused."""

import json

import pytest

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.models.moving_reference import REFERENCE_FILE
from hpt_trl.runs import runner
from tests.helpers.stage_runs import weights

MOVING = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5, "beta": 1.0}


def test_a_moving_reference_goes_on_where_it_was(recipe, tmp_path):
    path = recipe("dpo", save_strategy="steps", save_steps=2, learning_rate=1e-2, test_split_size=4, **MOVING)
    runner.run(path, [])
    out = tmp_path / "dpo"
    checkpoint, last = sorted(out.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    assert checkpoint.name == "checkpoint-2"
    # From the last one, where no step is left, the run's end is measured against what the reference had become.
    for start in (checkpoint, last):
        resumed = tmp_path / f"from-{start.name}"
        runner.run(path, ["--resume_from_checkpoint", str(start), "--output_dir", str(resumed)])
        assert weights(resumed) == weights(out)
        assert measured(resumed) == measured(out)
    # A checkpoint of a former version does not say what its files were.
    for name in (REFERENCE_FILE, "digests.json", "run.json"):
        (checkpoint / name).unlink()
    with pytest.raises(UserError, match="sync_ref_model"):
        runner.run(path, ["--resume_from_checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "lost")])


def measured(out):
    """What the held-out rows were worth after training."""
    return json.loads((out / "results.json").read_text())["after"]["held_out"]


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

"""A reference of DPO that moves with the policy (`sync_ref_model`) survives a resume."""

import pytest

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
    (checkpoint / REFERENCE_FILE).unlink()
    with pytest.raises(UserError, match="sync_ref_model"):
        runner.run(path, ["--resume_from_checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "lost")])

"""Checkpoints when things go wrong: a disk that is full, and processes that were killed while saving."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, Trainer

from hpt_trl.errors import UserError
from hpt_trl.runs import runner
from hpt_trl.runs.checkpoints import complete_checkpoints, is_complete
from tests.helpers.processes import ROOT
from tests.helpers.stage_runs import weights


@pytest.mark.parametrize("file", ["checkpoint-4/optimizer.pt", "checkpoint-4/trainer_state.json", "training_args.bin"])
def test_a_full_disk_leaves_the_last_checkpoint(recipe, tmp_path, file, monkeypatch):
    path, out = recipe("sft", save_strategy="steps", save_steps=2), tmp_path / "out"
    runner.run(path, [])
    straight = weights(tmp_path / "sft")
    shutil.copytree(tmp_path / "sft", out)
    (out / "results.json").unlink()
    (out / "training_args.bin").unlink()
    shutil.rmtree(out / "checkpoint-4")
    # The final model is written under another name as well.
    parent, name = Path(file).parent.name or "model", Path(file).name
    stock = Trainer.save_model

    def filling(self, output_dir=None, _internal_call=False):
        if (folder := Path(output_dir or self.args.output_dir)).name == parent:
            folder.mkdir(parents=True, exist_ok=True)
            # The device on which every write fails for want of room.
            (folder / name).symlink_to("/dev/full")
        stock(self, output_dir, _internal_call)

    last = "checkpoint-2" if parent == "checkpoint-4" else "checkpoint-4"
    again = ["--output_dir", str(out), "--resume_from_checkpoint", "true"]
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "save_model", filling)
        with pytest.raises(UserError, match=rf"GiB are free there\)\. {last} is complete: make room and go on"):
            runner.run(path, again)
    assert not (out / "results.json").is_file() and not (out / ".saving").exists()
    AutoModelForCausalLM.from_pretrained(out / last)
    (out / "training_args.bin").unlink(missing_ok=True)
    runner.run(path, again)
    assert weights(out) == straight and json.loads((out / "results.json").read_text())["steps"] == 4


# Files of at most 100 kB, less than the model has.
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "


def test_a_model_that_finds_no_room_ends_the_run_with_its_reason(recipe, tmp_path):
    command = f"{LIMITED}from hpt_trl.cli import main; raise SystemExit(main(['run', {recipe('sft', max_steps=1)!r}]))"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "could not be written (file too large" in done.stderr and "No checkpoint is complete" in done.stderr


def test_a_former_checkpoint_of_several_processes_says_so_when_it_is_whole(tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        (checkpoint / name).write_text('{"global_step": 2}')
    # Another program's is taken as it is.
    assert is_complete(checkpoint)
    (tmp_path / "recipe.yaml").touch()
    assert not is_complete(checkpoint) and complete_checkpoints(tmp_path) == []
    (checkpoint / "processes.txt").write_text("2\n")
    assert is_complete(checkpoint)
    shutil.rmtree(checkpoint)
    assert complete_checkpoints(Path(tmp_path)) == []

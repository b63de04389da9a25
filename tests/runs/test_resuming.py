"""Runs that go on: from the last whole checkpoint, with the recipe, the inputs and the processes that it is of."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from hpt_trl.cli import main
from hpt_trl.digests import damage_of, note_digests
from hpt_trl.errors import UserError
from hpt_trl.recipes.declared import KEYS_FILE
from hpt_trl.runs import runner
from hpt_trl.runs.changes import SAFE_KEYS
from hpt_trl.signals import Interrupted
from tests.helpers.processes import hpt_trl
from tests.helpers.stage_runs import results, weights

SAVED = {"save_strategy": "steps", "save_steps": 2}
AGAIN = ["--resume_from_checkpoint", "true"]


@pytest.fixture
def stopped(recipe, tmp_path):
    """A run of 6 steps as one that was stopped before its end leaves it; returns its recipe, folder and weights."""
    path = recipe("sft", **SAVED, max_steps=6)
    runner.run(path, [])
    folder = tmp_path / "sft"
    (folder / "results.json").unlink()
    return path, folder, weights(folder)


def flip(file: Path) -> None:
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 0xFF
    file.write_bytes(contents)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_every_file_of_a_checkpoint_is_known(stopped, tmp_path):
    _, folder, _ = stopped
    files = [path for path in (folder / "checkpoint-6").rglob("*") if path.is_file()]
    assert len(files) >= 10
    for file in files:
        for damage in (flip, lambda path: path.write_bytes(path.read_bytes()[:-2]), lambda path: path.write_bytes(b"")):
            kept = file.read_bytes()
            damage(file)
            assert damage_of(folder / "checkpoint-6", contents=True) is not None, file
            file.write_bytes(kept)
    assert damage_of(folder / "checkpoint-6", contents=True) is None


def test_damaged_ones_are_set_aside_and_the_last_whole_one_goes_on(stopped, capsys):
    path, folder, straight = stopped
    flip(folder / "checkpoint-6" / "optimizer.pt")
    (folder / "checkpoint-4" / "trainer_state.json").write_text('{"epoch": 0.5, "glo')
    capsys.readouterr()
    assert main(["run", path, *AGAIN]) == 0
    said = capsys.readouterr().out
    assert f"{folder}/checkpoint-6/optimizer.pt is not what was written" in said
    assert f"{folder}/checkpoint-4/trainer_state.json has 19 bytes, " in said
    assert said.count(f": set aside in {folder}/damaged; going on from checkpoint-2.") == 2
    assert names(folder / "damaged") == ["checkpoint-4", "checkpoint-6"]
    assert names(folder) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"] and weights(folder) == straight


def test_one_that_is_named_and_damaged_is_refused(stopped):
    path, folder, _ = stopped
    flip(folder / "checkpoint-6" / "model.safetensors")
    with pytest.raises(UserError, match=r"is not what was written.*The last whole one before it is .*checkpoint-4\."):
        runner.run(path, ["--resume_from_checkpoint", str(folder / "checkpoint-6")])
    assert names(folder) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_without_a_whole_one_there_is_one_line(stopped):
    path, folder, _ = stopped
    for step in (2, 4, 6):
        flip(folder / f"checkpoint-{step}" / "scheduler.pt")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole: .*checkpoint-6/scheduler\.pt.*overwrite true"):
        runner.run(path, AGAIN)
    assert names(folder) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"] and not (folder / "damaged").exists()
    runner.run(path, ["--overwrite", "true"])


def test_newer_ones_than_the_one_that_goes_on_are_set_aside(stopped, capsys):
    path, folder, straight = stopped
    runner.run(path, ["--resume_from_checkpoint", str(folder / "checkpoint-2")])
    assert f"set aside in {folder}/abandoned: checkpoint-4, checkpoint-6" in capsys.readouterr().out
    assert names(folder / "abandoned") == ["checkpoint-4", "checkpoint-6"] and weights(folder) == straight
    # Another time they keep out of each other's way.
    (folder / "results.json").unlink()
    runner.run(path, ["--resume_from_checkpoint", str(folder / "checkpoint-4")])
    assert sorted(path.name for path in (folder / "abandoned").iterdir()) == [
        *("checkpoint-4", "checkpoint-6", "checkpoint-6.2")
    ]


def test_what_differs_is_told_at_once_and_refused(stopped, recipe, tmp_path):
    _, folder, _ = stopped
    shutil.copy(tmp_path / "sums.jsonl", tmp_path / "others.jsonl")
    other = recipe("sft", **SAVED, max_steps=6, learning_rate=1e-3, dataset_name=str(tmp_path / "others.jsonl"), seed=4)
    before = (folder / "recipe.yaml").read_text()
    with pytest.raises(UserError, match="is of another recipe") as refused:
        runner.run(other, AGAIN)
    said = str(refused.value)
    assert "learning_rate 0.003 there, 0.001 here" in said and "seed 3 there, 4 here" in said and "others.jsonl" in said
    assert f"--model_name_or_path {folder}/checkpoint-6" in said
    assert (folder / "recipe.yaml").read_text() == before
    assert main(["check", other, *AGAIN]) == 2
    with pytest.raises(UserError, match="stage sft there, dpo here"):
        runner.run(recipe("dpo", **SAVED, output_dir=str(folder), max_steps=6), AGAIN)


def test_what_decides_nothing_may_differ(stopped, recipe, tmp_path, capsys, monkeypatch):
    _, folder, _ = stopped
    monkeypatch.chdir(tmp_path)
    # The same file by another name, a default that is written out, and what only says how long and how often.
    more = {"save_steps": 4, "max_steps": 8, "weight_decay": 0.0, "dataset_name": "sums.jsonl", "logging_steps": 2}
    runner.run(recipe("sft", **SAVED | more), AGAIN)
    said = capsys.readouterr().out
    assert "Changed since checkpoint-6: " in said and "max_steps 6 there, 8 here" in said and "weight_decay" not in said
    assert "The schedule of the learning rate is that of the new length." in said
    assert results(folder)["steps"] == 8


def test_the_keys_that_may_differ_are_keys():
    assert json.loads(KEYS_FILE.read_text())["keys"].keys() >= SAFE_KEYS


def test_rows_that_have_changed_are_refused(stopped, tmp_path):
    path = stopped[0]
    rows = (tmp_path / "sums.jsonl").read_text()
    (tmp_path / "sums.jsonl").write_text(rows.replace("What is 3 + 1?", "What is 3+1?"))
    with pytest.raises(UserError, match=r"sums\.jsonl has changed since .*checkpoint-6 was written"):
        runner.run(path, AGAIN)
    (tmp_path / "sums.jsonl").write_text(rows)
    runner.run(path, AGAIN)


def test_records_that_are_torn_stop_nothing(stopped, capsys):
    path, folder, straight = stopped
    (folder / "before.json").write_text('{"held_out": {"lo')
    (folder / "recipe.yaml").write_text("")
    assert main(["run", path, *AGAIN]) == 0
    assert "What was measured before the training is lost" in capsys.readouterr().out
    assert weights(folder) == straight and results(folder)["before"] is None
    (folder / "recipe.yaml").write_text("")
    assert main(["run", path]) == 2
    assert main(["run", path, "--overwrite", "true"]) == 0


def test_a_checkpoint_of_a_former_version_goes_on_and_is_told(stopped, capsys):
    path, folder, straight = stopped
    for step in (2, 4, 6):
        for name in ("run.json", "digests.json"):
            (folder / f"checkpoint-{step}" / name).unlink()
    (folder / "checkpoint-6" / "trainer_state.json").write_text('{"epoch": 0.5, "glo')
    runner.run(path, AGAIN)
    said = capsys.readouterr().out
    assert "checkpoint-6/trainer_state.json is torn: set aside" in said
    assert "checkpoint-4 has no digests (a former version's)" in said
    assert weights(folder) == straight
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "checkpoint-6")
    with pytest.raises(UserError, match="is of another recipe: learning_rate"):
        runner.run(path, [*AGAIN, "--learning_rate", "1e-4"])


@pytest.mark.parametrize("name", ["rollouts_0.pt", "scheduler.pt", "rng_state.pth", "entropy_ctrl_state.json"])
def test_a_state_that_is_missing_is_not_made_anew(recipe, tmp_path, name):
    path = recipe("grpo", **SAVED, use_adaptive_entropy=True, max_steps=2)
    runner.run(path, [])
    (tmp_path / "grpo" / "results.json").unlink()
    (tmp_path / "grpo" / "checkpoint-2" / name).unlink()
    with pytest.raises(UserError, match=rf"no complete checkpoint \(.*{name} is missing\)\. Write `--overwrite true`"):
        runner.run(path, AGAIN)


def of_another_launch(checkpoint: Path, **changes) -> None:
    """Lets a checkpoint say that it is of other processes."""
    note = json.loads((checkpoint / "run.json").read_text())
    (checkpoint / "run.json").write_text(json.dumps(note | changes))
    note_digests(checkpoint)


def test_another_number_of_processes_goes_on_where_it_comes_to_the_same(stopped):
    path, folder, straight = stopped
    of_another_launch(folder / "checkpoint-6", processes=2)
    runner.run(path, AGAIN)
    assert weights(folder) == straight
    (folder / "results.json").unlink()
    of_another_launch(folder / "checkpoint-6", processes=2, rows_per_step=16)
    with pytest.raises(UserError, match=r"2 processes .*this would be 1 process: a step had 16 rows and would have 4"):
        runner.run(path, AGAIN)
    of_another_launch(folder / "checkpoint-6", processes=1, profile="ZeRO-2")
    with pytest.raises(UserError, match=r"1 process \(ZeRO-2\), and cannot be read by whole states in each process"):
        runner.run(path, AGAIN)


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("grpo", {}, "each process draws from a stream and keeps rollouts of its own"),
        ("sft", {"use_peft": True, "lora_dropout": 0.1}, "draws the units that lora_dropout drops"),
        ("sft", {"neftune_noise_alpha": 5.0}, "neftune_noise_alpha"),
    ],
)
def test_another_number_of_processes_is_refused_where_it_would_not(recipe, tmp_path, stage, changes, said):
    path = recipe(stage, **SAVED, max_steps=2, **changes)
    runner.run(path, [])
    (tmp_path / stage / "results.json").unlink()
    of_another_launch(tmp_path / stage / "checkpoint-2", processes=2)
    with pytest.raises(UserError, match=rf"is of 2 processes .*{said}.*Go on with 2 processes, or begin a new run"):
        runner.run(path, AGAIN)


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["cpu", "fsdp2"])
def test_other_numbers_of_real_processes_come_to_the_same_weights(recipe, tmp_path, profile):
    path = recipe("sft", **SAVED, max_steps=4, global_batch_size=4, per_device_train_batch_size=1, use_cpu=None)
    outs = {}
    for name, count, words in (("two", 2, []), ("four", 4, [AGAIN[0], str(tmp_path / "two" / "checkpoint-2")])):
        launched = ["run", path, "--accelerate", profile, "--num_processes", str(count), *words]
        done = hpt_trl(*launched, "--output_dir", str(tmp_path / name))
        assert done.returncode == 0, done.stderr[-3000:]
        outs[name] = load_file(tmp_path / name / "model.safetensors")
    for key, value in outs["two"].items():
        assert torch.allclose(outs["four"][key], value, rtol=0, atol=1e-6), key


def test_the_attempts_of_a_run_are_in_its_results(stopped, recipe):
    path, folder, _ = stopped
    runner.run(path, ["--resume_from_checkpoint", str(folder / "checkpoint-4"), "--max_steps", "8"])
    first, second = results(folder)["attempts"]
    assert (first["from_step"], first["to_step"], second["from_step"], second["to_step"]) == (0, 4, 4, 8)
    assert first["changed"] == {} and second["changed"] == {"max_steps": [6, 8]}
    assert first["processes"] == 1 and second["versions"]["trl"] and first["seconds"] > 0
    assert first["seconds"] + second["seconds"] == pytest.approx(results(folder)["wall_time_s"]["total"], rel=0.2)


def test_variables_are_in_the_stored_recipe_but_for_secrets(recipe, tmp_path, monkeypatch):
    for name in ("PLAIN_SETTING", "SERVICE_API_KEY", "ADDRESS"):
        monkeypatch.setenv(name, "")
    variables = {"PLAIN_SETTING": "1", "SERVICE_API_KEY": "s3cret", "ADDRESS": "http://me:s3cret@host"}
    path = recipe("sft", max_steps=2, **SAVED, env=variables)
    runner.run(path, [])
    stored = (tmp_path / "sft" / "recipe.yaml").read_text()
    assert yaml.safe_load(stored)["env"] == {"PLAIN_SETTING": "1"} and "s3cret" not in stored
    # It is no key: the run goes on, and starts over, as without it.
    (tmp_path / "sft" / "results.json").unlink()
    runner.run(path, AGAIN)
    runner.run(str(tmp_path / "sft" / "recipe.yaml"), ["--output_dir", str(tmp_path / "again")])


class StoppingAt(TrainerCallback):
    """Ctrl-C in a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_finished_run_that_goes_on_is_none_until_it_ends(recipe, tmp_path):
    path, folder = recipe("sft", **SAVED, max_steps=2, lr_scheduler_type="constant"), tmp_path / "sft"
    runner.run(path, [])
    first = results(folder)
    assert first["after"]["held_out_change_errors"]
    # As one that was killed once its results were written: with nothing left to do, it says the same again.
    runner.run(path, AGAIN)
    assert results(folder)["after"] == first["after"] and results(folder)["before"] == first["before"]
    # One of a former version has the evaluation in its results alone.
    (folder / "before.json").unlink()
    with pytest.raises(Interrupted, match=r"checkpoint-2 is complete\. Go on with"):
        runner.run(path, [*AGAIN, "--max_steps", "5"], StoppingAt(3))
    assert not (folder / "results.json").exists()
    kept = sorted(path.name for path in (folder / "abandoned").iterdir())
    assert kept == ["results.json", "results.json.2"]
    runner.run(path, [*AGAIN, "--max_steps", "4"])
    assert results(folder)["steps"] == 4 and results(folder)["before"] == first["before"]

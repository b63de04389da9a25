"""Checkpoints come to their names as wholes: killed at each file, removed in turn, the best one known by name."""

import json
import shutil

import pytest
from transformers import TrainerCallback

from hpt_trl.digests import damage_of, note_digests
from hpt_trl.runs import runner
from hpt_trl.runs.checkpoints import complete_checkpoints, is_complete
from tests.helpers.killed import changes_of
from tests.helpers.stage_runs import weights

SAVED = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_steps": 3}


def names(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_whatever_ends_a_save_leaves_whole_checkpoints_alone(recipe, tmp_path):
    path, folder = recipe("sft", **SAVED), tmp_path / "sft"
    changes = changes_of(path, [], folder, tmp_path / "log")
    straight = weights(folder)
    assert names(folder) == ["checkpoint-3"] and damage_of(folder / "checkpoint-3", contents=True) is None
    begin = next(number for number, change in enumerate(changes) if "/.saving/checkpoint-2" in change)
    end = next(number for number, change in enumerate(changes) if "/.saving/checkpoint-3" in change)
    renames = [number for number in range(begin, end) if changes[number].startswith("os.rename")]
    # Of the files of `.saving` some; of what has a name to lose each, and what follows it.
    kills = sorted({*range(begin, end, 8), *renames, *(number + 1 for number in renames)})
    assert len(kills) >= 8
    for number in kills:
        shutil.rmtree(folder)
        changes_of(path, [], folder, tmp_path / "log", kill_at=number)
        there = [folder / name for name in names(folder)]
        assert there and all(is_complete(one) and damage_of(one, contents=True) is None for one in there), number
    runner.run(path, ["--resume_from_checkpoint", "true"])
    assert weights(folder) == straight
    assert names(folder) == ["checkpoint-3"] and not [one.name for one in folder.glob(".*")]


def test_the_entropy_that_trl_saves_last_is_among_the_digests(recipe, tmp_path):
    path = recipe("grpo", use_adaptive_entropy=True, save_strategy="steps", save_steps=2, max_steps=2)
    runner.run(path, [])
    noted = json.loads((tmp_path / "grpo" / "checkpoint-2" / "digests.json").read_text())["files"]
    assert {"entropy_ctrl_state.json", "run.json", "trainer_state.json", "rollouts_0.pt"} <= noted.keys()


def test_the_best_checkpoint_is_known_by_its_name(recipe, tmp_path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    # By the highest loss the first checkpoint stays the best.
    path = recipe("sft", **SAVED | best | {"greater_is_better": True, "save_total_limit": 2})
    runner.run(path, [])
    folder = tmp_path / "sft"
    assert names(folder) == ["checkpoint-1", "checkpoint-3"]
    for name in names(folder):
        state = json.loads((folder / name / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(folder / "checkpoint-1")
    assert weights(folder) == weights(folder / "checkpoint-1")


def test_a_best_checkpoint_that_is_damaged_costs_the_best_alone(recipe, tmp_path, monkeypatch, capsys):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    path, folder = recipe("sft", **SAVED | best | {"greater_is_better": True}), tmp_path / "sft"
    removed = []
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, *rest, **more: (removed.append(str(path)), rmtree(path, **more)))
    runner.run(path, [])
    # Nothing that has a checkpoint's name is removed under it.
    assert names(folder) == ["checkpoint-1"] and f"{folder}/.removing/checkpoint-3" in removed
    assert not [path for path in removed if path.startswith(f"{folder}/checkpoint-")]

    class Damaging(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                file = folder / "checkpoint-1" / "model.safetensors"
                file.write_bytes(file.read_bytes()[:-1])

    capsys.readouterr()
    runner.run(path, ["--overwrite", "true"], Damaging())
    assert "The best checkpoint is lost: the last model is saved in its place." in capsys.readouterr().out
    assert names(folder) == ["checkpoint-1", "checkpoint-3"]
    assert weights(folder) == weights(folder / "checkpoint-3")


@pytest.mark.parametrize("damage", ["flipped", "cut", "deleted", "unnamed"])
def test_a_file_that_is_not_what_was_written_is_told(tmp_path, damage):
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep" / "weights.bin"
    file.write_bytes(bytes(1000))
    (tmp_path / "settings.json").write_text("{}")
    note_digests(tmp_path)
    assert damage_of(tmp_path, contents=True) is None
    if damage == "flipped":
        file.write_bytes(bytes(500) + b"\x01" + bytes(499))
        assert damage_of(tmp_path, contents=False) is None
        assert "deep/weights.bin is not what was written" in damage_of(tmp_path, contents=True)
    elif damage == "cut":
        file.write_bytes(bytes(900))
        assert "deep/weights.bin has 900 bytes, 1,000 were written" in damage_of(tmp_path, contents=False)
    elif damage == "deleted":
        file.unlink()
        assert "deep/weights.bin is missing" in damage_of(tmp_path, contents=False)
    else:
        (tmp_path / "digests.json").write_text('{"algorithm": "xxh3_128", "files": {"deep/weig')
        assert damage_of(tmp_path, contents=False).endswith("digests.json is torn")


def test_a_checkpoint_whose_digests_are_gone_is_none(recipe, tmp_path):
    runner.run(recipe("sft", **SAVED), [])
    checkpoint = tmp_path / "sft" / "checkpoint-3"
    (checkpoint / "digests.json").unlink()
    assert complete_checkpoints(tmp_path / "sft") == []

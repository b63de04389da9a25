"""Runs that are started anew: nothing that they read goes, and what they replace goes once they have trained."""

import errno
import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.runs import runner
from hpt_trl.runs.inputs import refuse_inputs_inside
from tests.helpers.killed import changes_of
from tests.helpers.stage_runs import LORA, results, weights

ANEW = ["--overwrite", "true"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def finished(recipe, tmp_path):
    """A finished run; returns its folder."""
    runner.run(recipe("sft", save_strategy="steps", save_steps=2, max_steps=2), [])
    return tmp_path / "sft"


@pytest.mark.parametrize("words", [[], ANEW, ["--resume_from_checkpoint", "true"]], ids=str)
def test_a_model_in_the_folder_is_not_trained_into_it(recipe, finished, tmp_path, words):
    before = contents(finished)
    for name in ("", "checkpoint-2"):
        path = recipe("sft", model_name_or_path=str(finished / name))
        with pytest.raises(UserError, match=r"model_name_or_path.* lies in the `output_dir` of this run"):
            runner.run(path, words)
    # By a link, as the base of an adapter, and by an evaluation that the recipe names.
    (tmp_path / "link").symlink_to(finished)
    runner.run(recipe("sft", **LORA, model_name_or_path=str(finished), output_dir=str(tmp_path / "lora")), [])
    judged = {"stage": "evaluate", "dataset_name": str(finished / "rows.jsonl"), "model_name_or_path": "x"}
    judged |= {"output_dir": "y", "measures": ["perplexity"]}
    (tmp_path / "judged.yaml").write_text(yaml.safe_dump(judged))
    shutil.copy(tmp_path / "sums.jsonl", finished / "rows.jsonl")
    evaluation = {"stage": "evaluate", "measures": ["perplexity"], "dataset_name": str(tmp_path / "sums.jsonl")}
    evaluation |= {"model_name_or_path": str(tmp_path / "lora"), "output_dir": str(finished), "use_cpu": True}
    (tmp_path / "evaluation.yaml").write_text(yaml.safe_dump(evaluation))
    others = [
        recipe("sft", model_name_or_path=str(tmp_path / "link")),
        recipe("sft", evaluations=[str(tmp_path / "judged.yaml")]),
    ]
    # An evaluation has no checkpoints.
    for path in others if "--resume_from_checkpoint" in words else [*others, str(tmp_path / "evaluation.yaml")]:
        assert main(["check", path, *words]) == 2
        with pytest.raises(UserError, match="lies in the `output_dir` of this run"):
            runner.run(path, words)
    (finished / "rows.jsonl").unlink()
    assert contents(finished) == before


def test_what_links_lead_to_and_modules_in_the_folder_are_not_replaced(tmp_path, monkeypatch):
    out, near = tmp_path / "out", tmp_path / "near"
    for file in ("checkpoint-2/rows.jsonl", "checkpoint-2/config.json", "completions/own_rewards.py"):
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_text("")
    near.mkdir()
    (near / "config.json").symlink_to(out / "checkpoint-2" / "config.json")
    (out / "model" / "sft").mkdir(parents=True)
    (out / "model" / "sft" / "latest").symlink_to(out)
    monkeypatch.chdir(out)
    inside = {
        "model_name_or_path": str(near),
        "dataset_name": str(near),
        "datasets": [{"path": str(out / "checkpoint-2" / "rows.jsonl")}],
        "reward_funcs": ["completions.own_rewards.right"],
    }
    for key, value in inside.items():
        with pytest.raises(UserError, match=rf"^{key}: .* lies in the `output_dir` of this run"):
            refuse_inputs_inside({key: value, "output_dir": str(out)}, lambda key, said: UserError(f"{key}: {said}"))
    # What a run has left in its own folder, below the model that it is trained from, is none.
    own = {"model_name_or_path": str(out / "model"), "output_dir": str(out / "model" / "sft")}
    refuse_inputs_inside(own, lambda key, said: UserError(f"{key}: {said}"))


def test_a_start_that_fails_leaves_what_it_was_to_replace(recipe, finished, tmp_path, monkeypatch):
    before = contents(finished)

    def broken(*arguments, **settings):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr("hpt_trl.runs.training.build_trainer", broken)
        with pytest.raises(RuntimeError, match="no memory"):
            runner.run(recipe("sft", max_steps=3), ANEW)
    assert contents(finished) == before
    runner.run(recipe("sft", max_steps=3), ANEW)
    assert results(finished)["steps"] == 3
    assert not (finished / "checkpoint-2").exists() and not (finished / ".replaced").exists()


@pytest.mark.parametrize("fails", ["os.rename", "hpt_trl.runs.output_folder.write_atomically"])
def test_a_disk_that_is_full_at_the_start_leaves_what_it_was_to_replace(recipe, finished, monkeypatch, fails):
    before, calls = contents(finished), []
    module, _, name = fails.rpartition(".")
    whole = getattr(import_module(module), name)

    def broken(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == (4 if name == "rename" else 1):
            raise OSError(errno.EIO, "input/output error")
        return whole(*arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(fails, broken)
        with pytest.raises(OSError, match="input/output error"):
            runner.run(recipe("sft", max_steps=3), ANEW)
    assert calls and contents(finished) == before


def test_what_cannot_be_removed_costs_the_new_run_nothing(recipe, finished, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # As where another machine has a file open, or owns it.
        patched.setattr("hpt_trl.runs.replacing.shutil.rmtree", lambda *arguments, **settings: None)
        patched.setattr("hpt_trl.runs.training.save_final", interrupted)
        with pytest.raises((KeyboardInterrupt, UserError)):
            runner.run(recipe("sft", save_strategy="steps", save_steps=1, max_steps=3), ANEW)
    assert (finished / "checkpoint-3").is_dir() and not (finished / ".replaced").exists()
    assert not (finished / "results.json").exists()


def test_what_was_set_aside_is_not_removed_silently(recipe, finished):
    (finished / ".replaced").mkdir()
    for path in ("results.json", "checkpoint-2", "model.safetensors"):
        (finished / path).rename(finished / ".replaced" / path)
    before = contents(finished)
    path = recipe("sft", save_strategy="steps", save_steps=2, max_steps=2)
    with pytest.raises(UserError, match=r"did not finish, and what it kept in \.replaced\..*overwrite true"):
        runner.run(path, [])
    assert contents(finished) == before
    # Killed before all was there: it goes on as the run that it was.
    (finished / ".replaced").rename(finished / ".replacing")
    runner.run(path, [*ANEW, "--max_steps", "1"])
    assert results(finished)["steps"] == 1 and not list(finished.glob(".repl*"))


def test_a_start_that_is_killed_leaves_it_aside(recipe, finished, tmp_path):
    kept = weights(finished)
    path = recipe("sft", max_steps=3)
    whole = tmp_path / "whole"
    shutil.copytree(finished, whole)
    changes = changes_of(path, ANEW, finished, tmp_path / "log")
    shutil.rmtree(finished)
    at = next(number for number, change in enumerate(changes) if change == "open /metrics.jsonl")
    shutil.copytree(whole, finished)
    changes_of(path, ANEW, finished, tmp_path / "log", kill_at=at)
    assert weights(finished / ".replaced") == kept
    # In the middle of being set aside, too, the folder is a run's.
    shutil.rmtree(finished)
    shutil.copytree(whole, finished)
    at = next(number for number, change in enumerate(changes) if "os.rename" in change) + 3
    changes_of(path, ANEW, finished, tmp_path / "log", kill_at=at)
    assert main(["run", path, *ANEW]) == 0
    assert results(finished)["steps"] == 3 and not (finished / ".replaced").exists()


def test_a_link_goes_and_not_what_it_leads_to(recipe, finished, tmp_path):
    shutil.move(finished / "checkpoint-2", tmp_path / "elsewhere")
    (finished / "checkpoint-2").symlink_to(tmp_path / "elsewhere")
    (finished / "checkpoints").symlink_to(tmp_path / "nowhere")
    before = contents(tmp_path / "elsewhere")
    assert main(["run", recipe("sft", max_steps=1), *ANEW]) == 0
    assert contents(tmp_path / "elsewhere") == before
    assert not (finished / "checkpoint-2").is_symlink() and not (finished / "checkpoints").is_symlink()


def test_models_that_a_stopped_run_kept_are_not_removed_silently(recipe, tmp_path):
    path, folder = recipe("sft", max_steps=1), tmp_path / "sft"
    runner.run(path, [])
    (folder / "results.json").unlink()
    kept = folder / "checkpoints" / "20-percent"
    kept.mkdir(parents=True)
    shutil.copy(folder / "model.safetensors", kept)
    before = contents(folder / "checkpoints")
    with pytest.raises(UserError, match=r"did not finish, and what it kept in checkpoints\..*overwrite true"):
        runner.run(path, [])
    assert contents(folder / "checkpoints") == before
    runner.run(path, ANEW)
    assert not kept.exists()


def test_an_evaluation_that_fails_to_load_leaves_the_one_before(recipe, finished, tmp_path, monkeypatch):
    values = {"stage": "evaluate", "measures": ["perplexity"], "dataset_name": str(tmp_path / "sums.jsonl")}
    values |= {"model_name_or_path": str(finished), "output_dir": str(tmp_path / "evaluation"), "use_cpu": True}
    values |= {"max_completion_length": 8}
    path = tmp_path / "evaluation.yaml"
    path.write_text(yaml.safe_dump(values))
    runner.run(str(path), [])
    before = contents(tmp_path / "evaluation")

    def broken(*arguments):
        raise RuntimeError("no memory")

    monkeypatch.setattr("hpt_trl.runs.evaluating.load_model", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        runner.run(str(path), ANEW)
    assert contents(tmp_path / "evaluation") == before and json.loads(before["results.json"])

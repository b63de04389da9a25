"""A folder whose run broke off in its first step: the corrected recipe takes it, and nothing else is lost."""

import json
from pathlib import Path

import pytest

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.runs import runner
from hpt_trl.runs.warnings_file import read_warnings
from tests.helpers.stage_runs import remainder, results
from tests.helpers.trackers import read_tensorboard

CALLS = {"now": 0, "from": 0}


def breaking(completion_ids, **columns) -> list[float]:
    """A reward that raises from its call of a number on; the first one tries it on a demonstration."""
    CALLS["now"] += 1
    if CALLS["now"] >= CALLS["from"]:
        raise RuntimeError("the reward is broken")
    return remainder(completion_ids)


@pytest.fixture
def broken_off(recipe, tmp_path):
    """A run that reports to TensorBoard and whose reward raises in a step; returns its folder and the mended recipe."""

    def run(step: int = 1, **changes) -> tuple[Path, str]:
        CALLS.update({"now": 0, "from": 1 + step})
        keys = {"report_to": "tensorboard", "stop_on_warnings": ["kl"]} | changes
        path = recipe("grpo", reward_funcs=["tests.runs.test_starting.breaking"], **keys)
        with pytest.raises(Exception, match="the reward is broken"):
            runner.run(path, [])
        return tmp_path / "grpo", recipe("grpo", **keys)

    return run


def test_the_corrected_recipe_takes_the_folder(broken_off):
    out, mended = broken_off()
    left = {path.name for path in out.iterdir()}
    assert {"recipe.yaml", "trackers.json", "runs"} <= left and "results.json" not in left
    assert main(["run", mended]) == 0
    # TensorBoard has one run, the whole of it, and none of the earlier attempt's.
    assert [path.name for path in (out / "runs").iterdir()] == ["grpo"]
    scalars, texts, _ = read_tensorboard(out / "runs" / "grpo")
    assert [step for step, _ in scalars["train/loss"]] == [1, 2, 3, 4] and len(texts["training_rows"]) == 1
    assert results(out)["steps"] == 4


def test_a_warning_of_the_first_step_is_no_training(broken_off):
    out, mended = broken_off()
    line = {"step": 1, "kind": "no_supervised_tokens", "message": "none of the 4 rows of this step"}
    (out / "warnings.jsonl").write_text(json.dumps(line) + "\n")
    assert main(["run", mended]) == 0
    assert results(out)["warnings"] == read_warnings(out) == []


@pytest.mark.parametrize(
    "left",
    [
        {"warnings.jsonl": '{"step": 2, "kind": "kl", "message": "m"}\n'},
        {"warnings.jsonl": '{"step": 1, "kind": "kl", "mess'},
        {"metrics.jsonl": '{"step": 1, "loss": 0.5}\n'},
        {"metrics.jsonl": "\ufffd\n"},
        {"runs/another/events.out.tfevents.1": "of another run"},
        {"trackers.json": "{}"},
        {"trackers.json": '{"tensorboard": ["grpo"]}'},
        {"trackers.json": "[]"},
        {"trackers.json": "cut o"},
        {"notes.txt": "mine"},
    ],
    ids=str,
)
def test_what_may_be_of_a_training_is_kept(broken_off, tmp_path, left):
    out, mended = broken_off()
    for name, text in left.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
    before = contents(out)
    with pytest.raises(UserError, match=r"holds a run of another recipe, not finished\. Name another"):
        runner.run(mended, [])
    assert contents(out) == before


def test_a_run_that_broke_off_later_is_kept(broken_off):
    out, mended = broken_off(step=3)
    before = contents(out)
    with pytest.raises(UserError, match="holds a run of another recipe, not finished"):
        runner.run(mended, [])
    assert contents(out) == before
    assert main(["run", mended, "--overwrite", "true"]) == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_an_empty_recipe_is_not_a_runs(recipe, tmp_path):
    (tmp_path / "sft").mkdir()
    for name, text in (("recipe.yaml", ""), ("README.md", "mine"), ("model.safetensors", "mine as well")):
        (tmp_path / "sft" / name).write_text(text)
    with pytest.raises(UserError, match="holds no run of hpt-trl"):
        runner.run(recipe("sft"), ["--overwrite", "true"])
    assert (tmp_path / "sft" / "README.md").read_text() == "mine"

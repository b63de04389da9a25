"""Evaluations that stages name: files beside a recipe are found from anywhere, and count as the stage's contents."""

import json
import re
from pathlib import Path

import pytest
import yaml

from hpt_trl.cli import main
from hpt_trl.pipeline.fingerprint import changes, contents_of
from hpt_trl.pipeline.reading import read_plan
from hpt_trl.pipeline.run import _write_recipe
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.recipes.stages import STAGE_MODULES
from hpt_trl.runs.output_folder import resolved_recipe
from tests.helpers.processes import ROOT
from tests.helpers.stage_runs import sums

EVALUATION = {
    "stage": "evaluate",
    "output_dir": "elsewhere",
    "reward_funcs": ["math_answer"],
    "measures": ["avg@k"],
    "max_completion_length": 4,
    "use_cpu": True,
}


@pytest.fixture
def files(tmp_path, tiny_model_path):
    """A pipeline beside `beside.yaml`, of a stage whose recipe lies in another folder beside `near.yaml`."""
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums(6)))
    keys = {"stage": "sft", "model_name_or_path": tiny_model_path, "dataset_name": str(tmp_path / "train.jsonl")}
    keys |= {"dtype": "float32", "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1}
    evaluation = EVALUATION | {"model_name_or_path": tiny_model_path, "dataset_name": str(tmp_path / "test.jsonl")}
    (tmp_path / "recipes").mkdir()
    for path, values in {
        "beside.yaml": evaluation,
        "recipes/near.yaml": evaluation,
        "recipes/sft.yaml": keys | {"output_dir": "elsewhere", "evaluations": ["near.yaml"]},
        "chain.yaml": {
            "stage": "pipeline",
            "output_dir": str(tmp_path / "out"),
            "stages": {
                "first": {"recipe": "recipes/sft.yaml"},
                "second": {"recipe": "recipes/sft.yaml", "evaluations": ["beside.yaml", "evaluate/functions-tiny"]},
            },
        },
    }.items():
        (tmp_path / path).write_text(yaml.safe_dump(values, sort_keys=False))
    return tmp_path


def written(folder: Path, *words: str) -> dict[str, Path]:
    """The recipes of the stages, where their processes read them."""
    plan = read_plan(folder / "chain.yaml", list(words))
    plan.output_dir.mkdir(exist_ok=True)
    return {stage.name: _write_recipe(plan, stage) for stage in plan.stages}


def test_files_beside_a_recipe_are_found_by_the_stages_process(files, capsys):
    paths = written(files)
    assert main(["check", str(paths["first"])]) == 0, capsys.readouterr().err
    assert "near (avg@k on 6 rows)" in capsys.readouterr().out
    values = yaml.safe_load(paths["second"].read_text())
    assert values["evaluations"] == [str(files / "beside.yaml"), "evaluate/functions-tiny"]
    # What a run keeps of its recipe is found from its folder as well.
    kept = yaml.safe_load(resolved_recipe(read_recipe(files / "recipes" / "sft.yaml")))
    assert kept["evaluations"] == [str(files / "recipes" / "near.yaml")]


def test_files_on_the_command_line_count_from_the_working_directory(files, monkeypatch):
    elsewhere = files / "elsewhere"
    elsewhere.mkdir()
    for name in ("beside.yaml", "recipes/sft.yaml"):
        (elsewhere / Path(name).name).write_text((files / name).read_text())
    monkeypatch.chdir(elsewhere)
    for given in (["beside.yaml", "evaluate/gsm8k"], ["beside.yaml"]):
        plan = read_plan(files / "chain.yaml", ["--second.evaluations", *given, "--second.recipe", "sft.yaml"])
        (second,) = [stage for stage in plan.stages if stage.name == "second"]
        assert second.words["evaluations"] == [str(elsewhere / "beside.yaml"), *given[1:]]
        assert second.folders == [elsewhere, files]


def test_the_documentation_names_all_stages():
    said = (ROOT / "docs" / "pipeline.md").read_text().partition("```")[0]
    assert set(re.findall(r"`(\w+)`", said)) == {*STAGE_MODULES}


@pytest.mark.parametrize("changed", ["near.yaml", "test.jsonl", "samples.jsonl", "results.json"])
def test_a_stage_is_of_the_evaluations_that_it_names(files, changed):
    judged = files / "judged"
    judged.mkdir()
    for name in ("samples.json", "samples.jsonl", "results.json"):
        (judged / name).write_text("{}")
    near = files / "recipes" / "near.yaml"
    near.write_text(near.read_text() + f"against: {judged}\n")

    def contents() -> dict:
        plan = read_plan(files / "chain.yaml", [])
        return contents_of(next(stage for stage in plan.stages if stage.name == "first"), {})

    before = contents()
    (path,) = files.rglob(changed)
    path.write_text(path.read_text() + "\n# Changed.\n")
    # How the other evaluation was scored says nothing.
    assert bool(changes(before, contents())) == (changed != "results.json")


def test_a_stage_is_of_the_evaluation_that_it_compares_with(files):
    judged = files / "judged"
    judged.mkdir()
    (judged / "samples.jsonl").write_text("one")
    chain = yaml.safe_load((files / "chain.yaml").read_text())
    chain["stages"] = {"judge": {"recipe": "beside.yaml", "measures": ["win_rate"], "against": str(judged)}}
    (files / "chain.yaml").write_text(yaml.safe_dump(chain))
    before = contents_of(read_plan(files / "chain.yaml", []).stages[0], {})
    (judged / "samples.jsonl").write_text("another")
    after = contents_of(read_plan(files / "chain.yaml", []).stages[0], {})
    assert changes(before, after) == f"the files of {judged} changed"

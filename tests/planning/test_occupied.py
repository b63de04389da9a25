"""`check` of a recipe whose run lies there: told what lies there, not refused; `run` refuses it as before."""

import json

import pytest

from hpt_trl.cli import main
from tests.helpers.processes import ROOT


@pytest.fixture
def finished(recipe, capfd):
    """A finished run; its recipe."""
    path = recipe("sft", max_steps=1)
    assert main(["run", path]) == 0
    capfd.readouterr()
    return path


def test_check_after_a_finished_run_says_so_and_goes_on(finished, tmp_path, capfd):
    assert main(["check", finished]) == 0
    said = capfd.readouterr().out
    assert f"{tmp_path / 'sft'} holds a finished run. Name another `--output_dir`" in " ".join(said.split())
    assert "peak memory" in said
    assert main(["check", finished, "--json"]) == 0
    assert "holds a finished run" in json.loads(capfd.readouterr().out)["occupied"]
    # What else is wrong is told as ever, and this is none of it.
    assert main(["check", finished, "--max_stepz", "3"]) == 2
    said = capfd.readouterr().err
    assert "max_stepz" in said and "holds a finished run" not in said
    assert main(["run", finished]) == 2
    assert "holds a finished run" in capfd.readouterr().err
    assert main(["check", finished, "--overwrite", "true"]) == 0
    assert "holds a finished run" not in capfd.readouterr().out


def test_a_folder_of_something_else_is_refused_by_check_too(recipe, tmp_path, capfd):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert main(["check", recipe("sft"), "--output_dir", str(tmp_path / "other")]) == 2
    assert "holds no run of hpt-trl" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("recipe_name", "made_by"),
    [
        ("sft/stories-tiny", ["pretrain/stories-tiny"]),
        ("rho1/stories-tiny", ["pretrain/stories-tiny", "ref_tuning/stories-tiny"]),
        ("ppo/stories-tiny", ["sft/stories-tiny", "reward/stories-tiny"]),
    ],
)
def test_run_names_the_recipes_that_make_its_models(recipe_name, made_by, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["run", recipe_name, "--output_dir", str(tmp_path / "out")]) == 2
    said = capfd.readouterr().err
    for name in made_by:
        assert f"yet; make it first: hpt-trl run {name}\n" in said
    assert str(ROOT / "recipes" / f"{recipe_name}.yaml") in said


def test_a_misspelt_reward_is_named_beside_weights_of_another_number(tmp_path, capfd):
    words = ["--reward_funcs", "math_answr", "--reward_weights", "1", "2", "--output_dir", str(tmp_path / "out")]
    assert main(["run", "quickstart", *words]) == 2
    said = capfd.readouterr().err
    assert "Did you mean `math_answer`?" in said and "2 weights for 1 rewards" in said

"""Recipes with a value model from the command on: filled beforehand, trained, reported, and what is refused."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hpt_trl.cli import main
from hpt_trl.token_scores.weighting import STATE_FILE
from tests.helpers.datasets import write_jsonl
from tests.helpers.stage_runs import KEYS, results, sums
from tests.helpers.tiny import build_tokenizer
from tests.helpers.value_models import save_value_model


@pytest.fixture
def critic(tiny_model_path, tmp_path) -> str:
    return save_value_model(tiny_model_path, tmp_path / "critic")


@pytest.fixture
def recipe(tmp_path, tiny_model_path, critic):
    """Writes a recipe whose tokens are weighted and returns its path."""
    data = write_jsonl(tmp_path / "sums.jsonl", sums())

    def write(**changes) -> str:
        values = {**KEYS, "stage": "mtp", "n_future_tokens": 1, "dataset_name": str(data), "test_split_size": 6}
        values |= {"model_name_or_path": tiny_model_path, "output_dir": str(tmp_path / "run")}
        values |= {"weighting": "verifiable", "value_model_name_or_path": critic}
        values |= {"value_cache_dir": str(tmp_path / "values")}
        path = tmp_path / "weighted.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in (values | changes).items() if value is not None}))
        return str(path)

    return write


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_command_fills_what_the_training_finds(recipe, tmp_path, capsys):
    path = recipe(value_check_rows=0)
    assert main(["score-reference", path]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert "bytes a token" in said and str(tmp_path / "values") in said and "rows of" in said
    before = files(tmp_path / "values")
    assert {file.suffix for file in before} == {".json", ".values"}
    assert main(["run", path]) == 0
    assert files(tmp_path / "values") == before
    printed = capsys.readouterr().out
    assert f"Weights of tokens: {tmp_path / 'run' / 'token_weights.html'}" in printed
    assert results(tmp_path / "run")["after"]["held_out"]["loss"] > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for name in ("mean", "std", "clipped", "position_correlation", "nll_correlation"):
        assert any(f"mtp/weight_{name}" in line for line in lines), name
    assert main(["report", str(tmp_path / "run")]) == 0


def test_a_run_goes_on_with_its_statistics_or_not_at_all(recipe, tmp_path, capsys):
    path = recipe(save_strategy="steps", save_steps=2)
    assert main(["run", path]) == 0
    # A checkpoint of a former version does not say what its files were.
    for name in (STATE_FILE, "digests.json", "run.json"):
        (tmp_path / "run" / "checkpoint-2" / name).unlink()
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    assert main(["run", path, "--resume_from_checkpoint", checkpoint]) == 2
    error = capsys.readouterr().err
    assert f"{STATE_FILE}, the moving mean and spread, is missing. Resume from another checkpoint" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weighting": "verifyable"}, "verifiable"),
        ({"value_model_name_or_path": None}, "is made of a value model's values"),
        ({"value_model_name_or_path": "outputs/nothing"}, "there is no folder outputs/nothing"),
        ({"td_lambda": 2}, "allowed: from 0 to 1"),
    ],
)
def test_mistakes(changes, said, recipe, tmp_path, capsys):
    assert main(["run", recipe(**changes)]) == 2
    error = capsys.readouterr().err
    assert said in error and "weighted.yaml, line" in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_value_model_of_another_tokenizer(recipe, tmp_path, capsys, critic):
    build_tokenizer(300).save_pretrained(critic)
    assert main(["check", recipe()]) == 2
    error = capsys.readouterr().err
    assert "`value_model_name_or_path`" in error and "its values would be those of other tokens" in error


def test_values_that_are_known_up_to_a_shift_are_no_chances(recipe, tmp_path, caplog, tiny_model_path):
    assert main(["check", recipe(td_terminal="reward", td_first_baseline=0.5)]) == 0
    assert "td_terminal: reward compares" in caplog.text and "td_first_baseline: 0.5 compares" in caplog.text
    caplog.clear()
    reward = AutoModelForSequenceClassification.from_pretrained(tiny_model_path, num_labels=1)
    reward.save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(tmp_path / "reward")
    given = {"value_model_name_or_path": str(tmp_path / "reward")}
    assert main(["check", recipe(td_terminal="reward", **given)]) == 0
    assert "td_terminal: reward compares" in caplog.text and "(a reward model's scores)" in caplog.text
    caplog.clear()
    regression = save_value_model(tiny_model_path, tmp_path / "regression", objective="regression")
    assert main(["check", recipe(td_terminal="reward", value_model_name_or_path=regression)]) == 0
    assert main(["check", recipe()]) == 0
    assert "compares" not in caplog.text


def test_recipes_that_ask_no_value_model(recipe, tmp_path, capsys):
    path = recipe(weighting="uniform", value_model_name_or_path=None)
    assert main(["score-reference", path]) == 2
    assert "`weighting`" in (error := capsys.readouterr().err) and "uniform needs no frozen model" in error
    assert main(["score-reference", recipe(value_mode="online")]) == 2
    assert "online keeps no scores" in capsys.readouterr().err
    assert main(["check", recipe(value_mode="online")]) == 0
    assert "reference model" in capsys.readouterr().out
    assert main(["check", recipe()]) == 0
    assert "reference model" not in (said := capsys.readouterr().out) and "value model" not in said

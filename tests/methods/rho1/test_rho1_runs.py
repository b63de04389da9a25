"""Recipes of the stage `rho1` from the command on: what they leave, and what is refused before weights are loaded."""

import json

import pytest
import yaml
from transformers import AutoModelForCausalLM

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.planning.check import check
from hpt_trl.runs import runner
from tests.helpers.rho1 import TEXTS
from tests.helpers.stage_runs import KEYS, results, sums


@pytest.fixture
def recipe(tmp_path, tiny_model_path, reference_model_path):
    """Writes a recipe of the stage and returns its path."""
    documents, pairs = tmp_path / "texts.jsonl", tmp_path / "sums.jsonl"
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 3))
    pairs.write_text("".join(json.dumps(row) + "\n" for row in sums()))

    def write(**changes) -> str:
        values = {**KEYS, "stage": "rho1", "dataset_name": str(documents), "test_split_size": 2}
        values |= {"model_name_or_path": tiny_model_path, "output_dir": str(tmp_path / "run"), "max_length": 64}
        values |= {
            "reference_model_name_or_path": reference_model_path,
            "reference_cache_dir": str(tmp_path / "scores"),
        }
        if changes.get("dataset_layout") == "demonstrations":
            values |= {"dataset_name": str(pairs), "test_split_size": 6}
        path = tmp_path / "rho1.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in (values | changes).items() if value is not None}))
        return str(path)

    return write


def test_documents_packed(recipe, tmp_path, capsys):
    runner.run(recipe(packing=True, packing_strategy="wrapped", max_length=32), [])
    found = results(tmp_path / "run")
    assert found["stage"] == "rho1" and found["after"]["held_out"]["loss"] < found["before"]["held_out"]["loss"]
    assert "selections.html" in capsys.readouterr().out
    assert (tmp_path / "run" / "selections.html").is_file()
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("rho1/mean_excess" in line for line in lines)
    assert main(["report", str(tmp_path / "run")]) == 0


def test_completions_of_conversations(recipe, tmp_path):
    runner.run(recipe(dataset_layout="demonstrations", reference_mode="online", selection_scope="global"), [])
    found = results(tmp_path / "run")
    assert found["after"]["held_out"]["loss"] < found["before"]["held_out"]["loss"]
    sample = json.loads((tmp_path / "run" / "selections.jsonl").read_text().splitlines()[0])
    text = "".join(sample["tokens"])
    # The prompt takes no part.
    assert "<|im_start|>user" in text
    unscored = [token for token, loss in zip(sample["tokens"], sample["loss"], strict=True) if loss is None]
    assert "".join(unscored) == text[: text.index("It is")]


def test_a_scored_recipe_trains_without_its_reference_scores_again(recipe, tmp_path, capsys):
    path = recipe(reference_check_rows=0)
    assert main(["score-reference", path]) == 0
    assert "bytes a token" in capsys.readouterr().out
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "scores").rglob("*") if file.is_file()}
    runner.run(path, [])
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "scores").rglob("*") if file.is_file()}
    assert before == after


@pytest.mark.parametrize(
    "changes,said",
    [
        ({"select_ratio": 0}, "select_ratio"),
        ({"select_ratio": 1.5}, "select_ratio"),
        ({"selection": "exces"}, "excess"),
        ({"selection_scope": "batch"}, "micro_batch"),
        ({"dataset_layout": "document"}, "documents"),
        ({"loss_type": "dft"}, "nll"),
        ({"reference_model_name_or_path": None}, "reference_model_name_or_path"),
        ({"reference_model_name_or_path": "outputs/nothing"}, "there is no folder outputs/nothing"),
        ({"eval_samples": 2, "reward_funcs": ["math_answer"]}, "dataset_layout: demonstrations"),
        ({"dataset_layout": "demonstrations", "column_mapping": {"completion": "nothing"}}, "nothing"),
        ({"dataset_text_field": "body"}, "column_mapping"),
    ],
)
def test_mistakes(changes, said, recipe, tmp_path, capsys):
    assert main(["run", recipe(**changes)]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_the_model_itself_is_no_reference(recipe, tiny_model_path, tmp_path):
    with pytest.raises(UserError, match="selection_warmup_steps") as raised:
        check(recipe(reference_model_name_or_path=tiny_model_path), [])
    assert "rho1.yaml" in str(raised.value)
    check(recipe(reference_model_name_or_path=tiny_model_path, selection="reference_low"), [])
    runner.run(recipe(reference_model_name_or_path=tiny_model_path, selection_warmup_steps=2), [])
    assert results(tmp_path / "run")["steps"] == 4

"""A named test split whose rows are trained on: counted and said."""

import json

import pytest

from hpt_trl.planning.check import check
from hpt_trl.runs import runner
from tests.helpers.stage_runs import results, sums


@pytest.fixture
def splits(tmp_path, recipe):
    """Writes a recipe whose test split is a file of its own."""

    def write(stage: str, train: list[dict], test: list[dict], **changes) -> str:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        for name, rows in (("train", train), ("test", test)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return recipe(
            stage, dataset_name=str(folder), dataset_test_split="test", test_split_size=None, max_steps=1, **changes
        )

    return write


def test_shared_rows_are_counted(splits, tmp_path, caplog, capsys):
    # In another place, with other white space and another answer: the prompt is the same.
    same = {**sums(8)[7], "prompt": " What is  7 + 1?\n", "completion": "Eight."}
    path = splits("sft", sums(8), [*sums(12)[8:], same])
    check(path, [])
    assert "5 rows, 1 of them (20.0%) trained on as well" in capsys.readouterr().out
    (said,) = [record.getMessage() for record in caplog.records if "among the training rows" in record.getMessage()]
    assert "1 of 5 held-out rows (20.0 %)" in said and "test" in said and " 5, which is " in said and " 8)" in said
    runner.run(path, [])
    assert results(tmp_path / "sft")["overlap"] == {"rows": 1, "of": 5, "share": 0.2}


@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo"])
def test_a_test_split_without_new_rows_is_named(splits, caplog, stage):
    check(splits(stage, sums(8), sums(8)[::-1][:3]), [])
    assert "3 of 3 held-out rows (100.0 %) are among the training rows by their prompt" in caplog.text


def test_documents_are_compared_by_their_text(splits, caplog):
    train, test = ([{"text": f"Number {i} is here."} for i in range(*bounds)] for bounds in ((0, 20), (18, 24)))
    path = splits("rho1", train, test, selection="full")
    check(path, [])
    assert "2 of 6 held-out rows" in caplog.text and "by their text" in caplog.text


def test_rows_of_one_prompt_differ_by_their_answers(splits, caplog):
    rows = [{"prompt": "Name a number.", "completion": f"{i}"} for i in range(10)]
    check(splits("sft", rows[:7], rows[6:]), [])
    assert "1 of 4 held-out rows" in caplog.text


def test_split_off_rows_do_not_overlap(recipe, tmp_path):
    runner.run(recipe("sft", max_steps=1), [])
    assert results(tmp_path / "sft")["overlap"] == {"rows": 0, "of": 6, "share": 0.0}

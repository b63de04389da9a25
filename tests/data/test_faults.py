"""Faulty rows: all of them in one message, or left out and counted, whatever finds them."""

import json

import pytest

from hpt_trl.errors import UserError
from hpt_trl.runs import runner
from hpt_trl.runs.preparation import prepare
from tests.helpers.datasets import chat, load, refused, write_jsonl

GOOD = {"messages": [*chat("user", "Hi"), *chat("assistant", "Hello.")]}
# Found by the conversion, the check of rows, and the rendering.
BAD = [
    {"messages": chat("user", "Hi")},
    {"messages": [*chat("user", "Hi"), *chat("assistant", "")]},
    {"messages": [*chat("user", "Hi"), *chat("assistant", "<think>Hm. Hello.")]},
]


def test_lines_that_are_no_json_are_told_once(recipe, tmp_path, caplog):
    path = write_jsonl(tmp_path / "data.jsonl", [GOOD] * 6)
    path.write_text(path.read_text() + "{")
    prepared = prepare(recipe("sft", dataset_name=str(path), test_split_size=None), ["--on_bad_row", "drop"])
    assert caplog.text.count("are faulty and left out") == 1 and prepared.splits.dropped == 1


def test_rows_of_all_kinds_are_left_out_and_counted(recipe, tmp_path, caplog):
    rows = [GOOD, BAD[0], GOOD, BAD[1], BAD[2], *[GOOD] * 7]
    path = recipe(
        "sft",
        dataset_name=str(write_jsonl(tmp_path / "data.jsonl", rows)),
        test_split_size=None,
        eval_samples=0,
        eval_strategy="no",
        max_steps=1,
        output_dir=str(tmp_path / "run"),
    )
    with pytest.raises(UserError) as caught:
        prepare(path, [])
    assert "line 2: `messages` must hold a prompt" in str(caught.value) and "line 4: " in str(caught.value)
    runner.run(path, ["--on_bad_row", "drop"])
    assert "2 of 12 rows are faulty and left out" in caplog.text and "1 of 10 rows are faulty" in caplog.text
    assert "line 5: " in caplog.text and "is never closed" in caplog.text
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["faulty_rows"] == {"training": 3, "held_out": 0} and results["rows"]["training"] == 9


def test_every_fault_is_found_at_once(recipe, tmp_path):
    rows = [GOOD, BAD[2], GOOD, BAD[2] | {"id": 1}, GOOD]
    path = recipe("sft", dataset_name=str(write_jsonl(tmp_path / "data.jsonl", rows)), test_split_size=None)
    with pytest.raises(
        UserError,
        match=r"(?s)line 2: .*never closed.*1 more of 5 rows are faulty\.\n`on_bad_row: drop` leaves",
    ):
        prepare(path, ["--eval_samples", "0", "--eval_strategy", "no"])


def test_only_marked_answers_are_left_out(tmp_path):
    rows = [{"prompt": f"{n}", "completion": "x", "label": n % 3 > 0} for n in range(9)]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    splits = load(path, layout="demonstrations", on_bad_row="drop")
    assert splits.train["prompt"][:] == ["1", "2", "4", "5", "7", "8"] and splits.dropped == 3


def test_not_all_can_be_left_out(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "", "completion": "x"}] * 3)
    assert "All 3 rows are faulty" in refused(path, on_bad_row="drop")


def test_a_demonstration_of_hpt_that_cannot_be_trained_is_left_out(recipe, tmp_path):
    rows = [{"prompt": f"{n} + 1", "completion": f"\\boxed{{{n + 1}}}", "answer": f"{n + 1}"} for n in range(24)]
    rows[3]["completion"] = "<think>four"
    path = recipe(
        "hpt",
        dataset_name=str(write_jsonl(tmp_path / "data.jsonl", rows)),
        reward_funcs=["math_answer"],
        num_generations=4,
        eval_samples=0,
        max_completion_length=16,
    )
    assert prepare(path, ["--on_bad_row", "drop"]).splits.dropped == 1
    with pytest.raises(UserError, match=r"line 4: the demonstration `completion`: .*never closed"):
        prepare(path, [])

"""Rows are numbered in a column of their own, and the number leads to file and line."""

import json
import pickle

import pytest
from datasets import Dataset, DatasetDict

from hpt_trl.data.reading.places import Piece, Source, where
from hpt_trl.data.unused import unused_columns
from hpt_trl.errors import UserError
from hpt_trl.rewards.guarding import guard
from tests.helpers.datasets import load, refused, write_jsonl

OWN = ["A7", "B2", None, "seat 4"]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_a_column_named_row_is_the_users_own(tmp_path, ending):
    rows = [{"prompt": f"p{n}", "completion": "c", "row": own} for n, own in enumerate(OWN)]
    path = tmp_path / f"data{ending}"
    if ending == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text(json.dumps(rows) if ending == ".json" else "\n\n".join(map(json.dumps, rows)))
    train = load(path).train
    assert train["row"][:] == OWN and train["_row"][:] == ([1, 3, 5, 7] if ending == ".jsonl" else [1, 2, 3, 4])
    assert unused_columns(train.column_names, "prompts", ["completion"]) == ["row"]
    assert load(path, column_mapping={"prompt": "row"}, dataset_train_split="train[:2]").train["prompt"][:] == OWN[:2]


def test_a_fault_is_named_by_the_line_and_not_by_such_a_column(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "p", "row": 5}, {"prompt": " ", "row": 9}])
    assert f"{path}, line 2: `prompt` is empty" in refused(path, needs_demonstration=False)


def test_rewards_get_it_and_their_faults_name_the_row_of_the_data():
    seen = []

    def reward(prompts, completions, row, **columns):
        seen.append(row)
        return [float(text) for text in row]

    columns = {"prompts": ["p"] * 2, "completions": ["c"] * 2, "_row": [3, 8]}
    assert guard(reward)(**columns, row=["1", "2"]) == [1.0, 2.0] and seen == [["1", "2"]]
    with pytest.raises(UserError, match=r"at row 8\n"):
        guard(reward)(**columns, row=["1", "A7"])


def test_the_name_of_the_numbers_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "p", "completion": "c", "_row": 5}])
    assert "the column `_row` has the name" in refused(path)


def test_rows_of_several_splits_are_told_apart(tmp_path):
    parts = {"train": ["a", "b", "c"], "extra": ["d", " ", "f"]}
    data = DatasetDict({name: Dataset.from_dict({"prompt": texts}) for name, texts in parts.items()})
    data.save_to_disk(tmp_path / "saved")
    found = refused(tmp_path / "saved", dataset_train_split="train+extra", needs_demonstration=False)
    assert "saved (extra), row 2: `prompt` is empty" in found
    splits = load(tmp_path / "saved", dataset_train_split="train[1:]+extra[:1]", needs_demonstration=False)
    assert len({*splits.train["_row"]}) == 3
    assert [where(splits.source, row).split("/saved ")[1] for row in splits.train["_row"]] == [
        "(train), row 2",
        "(train), row 3",
        "(extra), row 1",
    ]


def test_a_source_keeps_its_pieces_on_its_way_to_another_process():
    source = Source("both", [Piece("a.jsonl", by_line=True), Piece("b.json", before=10)])
    for one in (source, pickle.loads(pickle.dumps(source)), source.called("both (held out)")):
        assert [where(one, row) for row in (1, 10, 11)] == [
            "a.jsonl, line 1",
            "a.jsonl, line 10",
            "b.json, row 1",
        ]

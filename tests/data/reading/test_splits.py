"""Splits and slices of them, from every kind of source."""

import json
import logging

import pytest
from datasets import Dataset, DatasetDict

from tests.helpers.datasets import chat, load, refused, write_jsonl

ROWS = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(1, 41)]


@pytest.fixture(
    params=["jsonl", "json", "csv", "parquet", "*.jsonl", "saved", "saved splits", "copy of a repository", "folder"]
)
def source(request, tmp_path):
    """Forty rows as split `train`."""
    path = tmp_path / f"data.{request.param}"
    if request.param == "jsonl":
        write_jsonl(path, ROWS)
    elif request.param == "json":
        path.write_text(json.dumps(ROWS))
    elif request.param == "parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    elif request.param == "csv":
        path.write_text("prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in ROWS))
    elif request.param in ("*.jsonl", "folder"):
        folder = tmp_path / "folder"
        folder.mkdir()
        for name, rows in (("a", ROWS[:15]), ("b", ROWS[15:])):
            write_jsonl(folder / f"{name}.jsonl", rows)
        return folder if request.param == "folder" else folder / request.param
    elif request.param == "saved":
        Dataset.from_list(ROWS).save_to_disk(path)
    elif request.param == "saved splits":
        DatasetDict(train=Dataset.from_list(ROWS), validation=Dataset.from_list(ROWS[:3])).save_to_disk(path)
    else:
        path.mkdir()
        Dataset.from_list(ROWS).to_parquet(path / "train.parquet")
        Dataset.from_list(ROWS[:3]).to_parquet(path / "validation.parquet")
    return path


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("train[:25%]", range(1, 11)),
        ("train[10:20]", range(11, 21)),
        ("train[:100]", range(1, 41)),
        ("train[-4:]", range(37, 41)),
        ("train[50%:]+train[:10%]", [*range(21, 41), *range(1, 5)]),
        # 7 % of 40 rows are 2.8.
        ("train[:7%]", range(1, 4)),
    ],
)
def test_a_slice_is_read_and_its_rows_keep_their_numbers(source, name, rows):
    splits = load(source, dataset_train_split=name)
    # A line of a .csv file stands below the header.
    below = 1 if source.suffix == ".csv" else 0
    assert splits.train["_row"][:] == [row + below for row in rows]
    assert splits.train["prompt"][:] == [ROWS[row - 1]["prompt"] for row in rows]
    assert splits.source == f"{source} ({name})" and splits.test is None


def test_the_held_out_rows_may_be_a_slice_of_the_same_split(source):
    splits = load(source, dataset_train_split="train[:90%]", dataset_test_split="train[90%:]")
    assert splits.train["prompt"][:] == [row["prompt"] for row in ROWS[:36]]
    assert splits.test["prompt"][:] == [row["prompt"] for row in ROWS[36:]]
    assert splits.test_source == f"{source} (train[90%:])"
    for train, test, shared in [
        ("train", "train[90%:]", 4),
        ("train[:50%]", "train[40%:60%]", 4),
        ("train", "train", 40),
    ]:
        message = refused(source, dataset_train_split=train, dataset_test_split=test)
        assert f"dataset_test_split: `{test}` of {source} shares {shared} rows with `{train}`" in message


def test_what_is_no_split_is_refused_with_what_there_is(source):
    there = "train, validation" if source.name.endswith(("splits", "repository")) else "train"
    for settings, message in [
        (
            {"dataset_train_split": "tran[:10%]"},
            f"dataset_train_split: {source} has no split `tran`; it has {there}; did you mean `train`?",
        ),
        ({"dataset_test_split": "eval"}, f"dataset_test_split: {source} has no split `eval`; it has {there}"),
        ({"dataset_test_split": "test.jsonl"}, "Name a folder that holds both files, train.jsonl and test.jsonl."),
        # Only where it is not written may it be missing.
        ({"dataset_test_split": "test"}, f"dataset_test_split: {source} has no split `test`; it has {there}"),
        ({"dataset_train_split": "train[:x]"}, "dataset_train_split: `train[:x]`"),
        ({"dataset_train_split": "train[20:10]"}, "selects no rows"),
        ({"dataset_train_split": "train[:300%]"}, "dataset_train_split: `train[:300%]`"),
        ({"dataset_train_split": "train[:9%](pct1_dropremainder)"}, "less than 100 elements"),
        ({"dataset_train_split": "train[:9%](nearest)"}, "dataset_train_split: `train[:9%](nearest)`"),
    ]:
        assert message in refused(source, **settings)


def test_rounding_by_whole_rows_of_one_per_cent(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [ROWS[n % 40] for n in range(250)])
    name = "train[:3%](pct1_dropremainder)"
    splits = load(path, dataset_train_split=name)
    assert len(splits.train) == 6 and splits.source == f"{path} ({name})"


def test_generated_data_has_slices_too():
    options = {"size": 20, "test_size": 10}
    splits = load("arithmetic", dataset_options=options, dataset_train_split="train[:5]", dataset_test_split="test[:3]")
    assert (len(splits.train), len(splits.test)) == (5, 3)
    assert (splits.source, splits.test_source) == ("arithmetic (train[:5])", "arithmetic (test[:3])")
    whole = load("arithmetic", dataset_options=options)
    assert whole.train[:5] == splits.train[:] and whole.source == "arithmetic"
    assert "arithmetic has no split `validation`; it has train, test." in refused(
        "arithmetic", dataset_test_split="validation"
    )


def test_a_split_of_the_datas_own_that_stays_unused_is_told(source, caplog):
    """By `test_split_size` a test split stays untouched while one tries things out."""
    options, size = {"size": 20, "test_size": 10}, {"test_split_size": 4}
    splits = load("arithmetic", dataset_options=options, **size)
    assert (len(splits.train), len(splits.test)) == (16, 4) and splits.test_source == "arithmetic (held out)"
    assert "arithmetic (test), 10 rows of the data's own, stays unused" in caplog.text
    caplog.clear()
    assert len(load("arithmetic", dataset_options=options | {"test_size": 0}, **size).test) == 4
    assert "drop one of the two" in refused(source, dataset_test_split="train[90%:]", **size)
    assert len(load(source, **size).test) == 4
    assert "stays unused" not in caplog.text


def test_a_split_test_that_is_trained_on_is_not_held_out_as_well(tmp_path):
    """Data that has no other split: the default of the held-out rows does not stand against it."""
    DatasetDict({"test": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    splits = load(tmp_path / "saved", dataset_train_split="test")
    assert len(splits.train) == len(ROWS) and splits.test is None
    splits = load(tmp_path / "saved", dataset_train_split="test[:90%]", test_split_size=5)
    assert len(splits.test) == 5
    assert "shares" in refused(tmp_path / "saved", dataset_train_split="test", dataset_test_split="test")


def test_a_faulty_row_of_a_slice_goes_by_its_line(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [*ROWS[:6], {"prompt": "", "completion": "x"}, *ROWS[7:]])
    assert f"{path} (train[5:]), line 7: `prompt` is empty." in refused(path, dataset_train_split="train[5:]")
    load(path, dataset_train_split="train[:5]")


def test_blank_lines_do_not_count_as_rows(tmp_path, caplog):
    path = tmp_path / "data.jsonl"
    path.write_text("\n" + "\n\n".join(json.dumps(row) for row in ROWS[:4]))
    with caplog.at_level(logging.WARNING):
        splits = load(path, dataset_train_split="train[2:]")
    assert splits.train["_row"][:] == [6, 8]


def test_keys_that_would_be_swallowed_are_refused(source, tmp_path):
    slices = {"dataset_train_split": "train[:10]", "dataset_test_split": "train[10:]"}
    assert "test_split_size: 3 rows" in refused(source, test_split_size=3, **slices)
    for name in (source, "arithmetic"):
        message = refused(name, dataset_config="main")
        # A folder that is no saved dataset may be the copy of a repository, which has configs.
        assert "dataset_config: main names a part of a Hub dataset" in message or "'main' not found" in message


@pytest.mark.parametrize("texts, messages", [("train", "test"), ("test", "train")])
def test_texts_in_one_split_and_messages_in_the_other(tmp_path, texts, messages):
    write_jsonl(tmp_path / f"{texts}.jsonl", [{"prompt": "a", "completion": "b"}])
    write_jsonl(tmp_path / f"{messages}.jsonl", [{"messages": [*chat("user", "c"), *chat("assistant", "d")]}])
    splits = load(tmp_path, layout="demonstrations")
    for rows, asked, answered in ((getattr(splits, texts), "a", "b"), (getattr(splits, messages), "c", "d")):
        assert rows[0]["prompt"] == chat("user", asked) and rows[0]["completion"] == chat("assistant", answered)

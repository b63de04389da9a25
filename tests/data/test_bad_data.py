"""Faulty rows and files: each message names the file and the row, and says what to write."""

import os
import subprocess
import sys

import pytest
from datasets import Dataset, DatasetDict

from hpt_trl.data.loading import validate_rows
from hpt_trl.errors import UserError
from tests.helpers.datasets import chat, load, refused, write_jsonl

# Faulty rows: each message names the file and the row


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": None, "completion": "b"}, "`prompt` is missing (None)"),
        ({"prompt": "  ", "completion": "b"}, "`prompt` is empty"),
        ({"prompt": "a", "completion": None}, "the demonstration (`completion`) is missing"),
        ({"prompt": "a"}, "the demonstration (`completion`) is missing"),
        ({"prompt": "a", "completion": ""}, "the demonstration (`completion`) is empty"),
    ],
)
def test_faulty_text_rows(tmp_path, bad, message):
    good = {"prompt": "a", "completion": "b"}
    path = write_jsonl(tmp_path / "data.jsonl", [good, good, bad, good, bad])
    text = refused(path)
    assert f"{path}, line 3: {message}" in text and "1 more of 5 rows" in text


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": chat("asistant")}, "`prompt`, message 1 has the role 'asistant'; did you mean 'assistant'?"),
        ({"prompt": []}, "`prompt` is an empty list"),
        ({"prompt": [*chat(), {"role": "user"}]}, "`prompt`, message 2 (user) has no content"),
        ({"prompt": chat(content="")}, "`prompt`, message 1 (user) has no content"),
        ({"prompt": [{"content": "Hi"}]}, "`prompt`, message 1 has the role None"),
        ({"completion": chat("user")}, "`completion`, message 1 has the role 'user'; a demonstration begins with"),
        ({"completion": []}, "`completion` is an empty list"),
        ({"completion": None}, "the demonstration (`completion`) is missing"),
    ],
)
def test_faulty_message_rows(tmp_path, bad, message):
    good = {"prompt": chat(), "completion": chat("assistant")}
    path = tmp_path / "data.parquet"
    Dataset.from_list([good, good | bad]).to_parquet(path)
    assert f"{path}, row 2: {message}" in refused(path)


def test_a_dataset_without_row_column_is_numbered_by_position():
    with pytest.raises(UserError, match="my data, row 1002: `prompt` is empty"):
        validate_rows(Dataset.from_dict({"prompt": ["a"] * 1001 + [""]}), "my data", needs_demonstration=False)


def test_prompts_of_another_type_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": 5, "completion": "b"}])
    assert "line 1: `prompt` is 5; write a text or a list of messages" in refused(path)
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": ["a"], "completion": "b"}])
    assert "`prompt`, message 1 is 'a'; write {\"role\"" in refused(path)


def test_the_line_counts_blank_lines(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n\n\n{"prompt": "", "completion": "b"}\n')
    assert f"{path}, line 4: `prompt` is empty" in refused(path)


# Comparisons, conversations and documents

COMPARISON = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1.5}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"rejected": "b"}, "`chosen` and `rejected` are the same ('b')"),
        ({"chosen": "", "rejected": ""}, "the comparison is empty"),
        ({"chosen": None, "rejected": None}, "the comparison is empty"),
        ({"chosen": " "}, "`chosen` is empty"),
        ({"rejected": None}, "`rejected` is missing (None)"),
        ({"prompt": None}, "`prompt` is missing (None)"),
        ({"prompt": " "}, "`prompt` is empty"),
        ({"margin": None}, "`margin` is None"),
    ],
)
def test_faulty_comparisons(tmp_path, bad, message):
    path = write_jsonl(tmp_path / "data.jsonl", [COMPARISON, COMPARISON, COMPARISON | bad, COMPARISON | bad])
    text = refused(path, layout="comparisons")
    assert f"{path}, line 3: {message}" in text and "1 more of 4 rows" in text


def test_whole_conversations_are_split(tmp_path):
    rows = [{"chosen": [*chat(), *chat("assistant", "b")], "rejected": [*chat(), *chat("assistant", "c")]}]
    splits = load(write_jsonl(tmp_path / "data.jsonl", rows), layout="comparisons")
    assert splits.train[0]["prompt"] == chat() and splits.train[0]["rejected"] == chat("assistant", "c")
    same = write_jsonl(tmp_path / "same.jsonl", [*rows, rows[0] | {"rejected": rows[0]["chosen"]}])
    assert "line 2: `chosen` and `rejected` are the same" in refused(same, layout="comparisons")
    torn = write_jsonl(tmp_path / "torn.jsonl", [*rows, rows[0] | {"rejected": chat()}])
    assert "line 2: `rejected` must hold a prompt and end with" in refused(torn, layout="comparisons")

    messages = [{"messages": [*chat(), *chat("assistant", "b")]}]
    splits = load(write_jsonl(tmp_path / "chats.jsonl", messages), layout="demonstrations")
    assert splits.train[0]["prompt"] == chat() and splits.train[0]["completion"] == chat("assistant", "b")
    path = write_jsonl(tmp_path / "odd.jsonl", [*messages, {"messages": chat()}])
    assert "line 2: `messages` must hold a prompt and end with" in refused(path, layout="demonstrations")


def test_faulty_documents(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"text": "Once"}, {"text": " "}])
    assert f"{path}, line 2: `text` is empty" in refused(path, layout="documents")
    path = write_jsonl(tmp_path / "data.jsonl", [{"content": "Once"}])
    assert "column_mapping: {text: content}" in refused(path, layout="documents")
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a", "better": "b", "rejected": "c"}])
    assert "column_mapping: {chosen: better}" in refused(path, layout="comparisons")


def test_prompts_are_held_out_with_all_their_comparisons(tmp_path):
    rows = [{"prompt": f"p{i // 4}", "chosen": f"b{i}", "rejected": f"c{i}"} for i in range(40)]
    splits = load(write_jsonl(tmp_path / "data.jsonl", rows), layout="comparisons", test_split_size=8)
    assert len(splits.test) == 8 and len(splits.train) == 32
    assert len(set(splits.test["prompt"])) == 2 and not set(splits.test["prompt"]) & set(splits.train["prompt"])


# Files that cannot be read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": "b"\n', "line 2: not valid JSON"),
        ('{"prompt": "a"}\n{"prompt": ' + "[" * 100_000 + "\n", "line 2: it is nested too deep"),
        ('{"prompt": "a"}\n{"prompt": ' + "9" * 5000 + "}\n", "line 2: Exceeds the limit"),
        ('{"prompt": "a"}\n["b"]\n', "line 2: ['b'] is not an object"),
        ('{"prompt": "a"}\n{"prompt": 5}\n', "line 2: `prompt` is 5, but other rows hold string"),
        ("", "has no rows"),
    ],
)
def test_broken_json_lines(tmp_path, text, message):
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    assert message in refused(path) and str(path) in refused(path)


GOOD = '{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"prompt": 5, "completion": "b"}', "`prompt` is 5, but other rows hold string"),
        ('{"prompt": "\\ud83d", "completion": "b"}', "`prompt` holds half a character"),
        ("7", "7 is not an object"),
        ('{"prompt": "a"', "not valid JSON"),
        ('{"prompt": ' + "[" * 100_000, "it is nested too deep"),
    ],
)
def test_rows_that_cannot_be_read_are_dropped_and_counted(tmp_path, caplog, bad, said):
    path = tmp_path / "data.jsonl"
    # The first of several is not taken for what the others have to be like.
    path.write_text(f"{bad}\n{GOOD}{bad}\n{GOOD * 2}")
    splits = load(path, on_bad_row="drop", dataset_train_split="train[:2]", dataset_test_split="train[2:]")
    assert splits.train["_row"][:] == [2, 4] and splits.test["_row"][:] == [5]
    # A slice has those that stand among its rows.
    assert (splits.dropped, splits.test_dropped) == (2, 0)
    assert f"{path} (train[:2]): 2 of 4 rows are faulty and left out" in caplog.text
    assert f"{path} (train[:2]), line 1: {said}" in caplog.text
    text = refused(path)
    assert f"{path}, line 1: {said}" in text and text.count(str(path)) in (1, 2)


def test_fields_too_many_are_a_fault_of_their_row(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("prompt,completion\na,b\nc,d,e\nf,g\n")
    splits = load(path, on_bad_row="drop")
    assert splits.train["prompt"][:] == ["a", "f"] and splits.dropped == 1
    path.write_text("prompt,completion\nc,d,e\n")
    assert "All 1 rows are faulty" in refused(path, on_bad_row="drop")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "data.parquet").write_bytes(b"not parquet")
    assert "data.parquet cannot be read" in refused(tmp_path / "data.parquet")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}\n'.encode("latin-1"))
    assert "line 1: not UTF-8" in refused(tmp_path / "latin.jsonl")
    (tmp_path / "data.json").write_text('[{"prompt": "a"},]')
    assert "is not valid JSON" in refused(tmp_path / "data.json")
    (tmp_path / "data.json").write_text("[" * 100_000)
    assert "is not valid JSON: it is nested too deep" in refused(tmp_path / "data.json")
    (tmp_path / "data.jsonl.gz").write_bytes(b"plain")
    assert "data.jsonl.gz cannot be read" in refused(tmp_path / "data.jsonl.gz")
    (tmp_path / "data.xlsx").write_text("prompt\n")
    assert "of an unknown kind; write .jsonl" in refused(tmp_path / "data.xlsx")
    (tmp_path / "folder").mkdir()
    assert "cannot be read" in refused(tmp_path / "folder")
    assert "Did you mean" in refused(tmp_path / "data.jsonl") and "there is no file" in refused(tmp_path / "data.jsonl")


def test_only_generated_data_has_options(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a", "completion": "b"}])
    assert "only generated datasets" in refused(path, dataset_options={"size": 3})
    assert "is missing" in refused("")
    assert "Did you mean `arithmetic`?" in refused("arithmetics")


def test_splits_are_picked_by_name(tmp_path):
    rows = Dataset.from_list([{"prompt": "a", "completion": "b"}])
    DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved", dataset_test_split="validation").test_source.endswith("(validation)")
    assert load(tmp_path / "saved").test is None
    assert "did you mean `validation`" in refused(tmp_path / "saved", dataset_test_split="validatoin")
    assert "has no split `trian`; it has train, validation" in refused(tmp_path / "saved", dataset_train_split="trian")


@pytest.mark.parametrize(
    "environment",
    [
        {"HF_HUB_OFFLINE": "1"},
        # The Hub client tries again for about 20 s.
        pytest.param({"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}, marks=pytest.mark.slow),
    ],
    ids=["offline", "connection refused"],
)
def test_a_hub_dataset_that_cannot_be_reached(environment):
    code = (
        "from hpt_trl.recipes.arguments import RecipeArguments\nfrom hpt_trl.data.loading import load_splits\n"
        "from hpt_trl.errors import UserError\n"
        "try: load_splits(RecipeArguments(dataset_name='nobody/none'), seed=0, needs_demonstration=True)\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=True
    )
    assert "`nobody/none` is not a local file" in done.stdout
    assert "--dataset_name path/to/file.jsonl" in done.stdout

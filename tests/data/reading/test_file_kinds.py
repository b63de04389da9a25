"""What people have on disk: each kind of file, in each encoding, one or several of them, in folders."""

import gzip
import json
import os
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, List, Value, load_dataset

from hpt_trl.data.loading import load_splits
from hpt_trl.data.names import check_name
from hpt_trl.data.reading.places import where
from hpt_trl.data.reading.tables import parquet_rows
from hpt_trl.errors import UserError
from hpt_trl.recipes.arguments import RecipeArguments
from tests.helpers.datasets import chat, load, refused, write_jsonl

ROWS = [
    {"prompt": "What is 2 + 3?", "completion": 'He said "five", twice.', "day": "2024-01-31", "code": "007"},
    {"prompt": "Größe, 大小?\nSecond line", "completion": "NA", "day": "2024-02-29", "code": "1e5"},
    {"prompt": "null", "completion": " padded ", "day": "12:30", "code": "None"},
]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


def delimited(rows, separator=",", end="\n"):
    quoted = [[f'"{value.replace(chr(34), chr(34) * 2)}"' for value in row.values()] for row in rows]
    return end.join(separator.join(fields) for fields in [[*rows[0]], *quoted]) + end


TEXTS = {
    ".jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    ".ndjson": "\r\n".join(json.dumps(row) for row in ROWS),
    ".json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "-data.json": json.dumps({"version": "1.0", "data": ROWS}),
    "-lines.json": "".join(json.dumps(row) + "\n" for row in ROWS),
    "-list.jsonl": json.dumps(ROWS),
    ".csv": delimited(ROWS),
    "-semicolon.csv": delimited(ROWS, ";", "\r\n"),
    ".tsv": delimited(ROWS, "\t"),
    ".CSV": delimited(ROWS),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("ending", TEXTS)
def test_each_kind_in_each_encoding(tmp_path, ending, encoding):
    path = tmp_path / f"data{ending}"
    content = TEXTS[ending].encode(encoding)
    path.write_bytes(content)
    packed = tmp_path / f"packed{ending}.gz"
    packed.write_bytes(gzip.compress(content))
    for file in (path, packed):
        train = load(file).train
        assert [{name: row[name] for name in ROWS[0]} for row in train] == ROWS
        assert load(file, dataset_train_split="train[1:]", dataset_test_split="train[:1]").test["code"][:] == ["007"]


def test_delimited_values_are_those_of_the_builder_of_datasets(tmp_path):
    text = 'prompt,completion,n,\r\n"a ""quoted"", word",b,1,x\r\n\r\n"two\nlines",  spaced ,,\r\nN/A,nan,1.50,true\r\n'
    (tmp_path / "data.csv").write_bytes(text.encode())
    names = ["prompt", "completion", "n", "Unnamed: 3"]
    theirs = load_dataset(
        "csv",
        data_files=str(tmp_path / "data.csv"),
        split="train",
        keep_default_na=False,
        features=Features({name: Value("string") for name in names}),
        cache_dir=str(tmp_path / "cache"),
    )
    ours = load(tmp_path / "data.csv").train
    assert [{name: row[name] or "" for name in names} for row in ours] == [
        {name: row[name] or "" for name in names} for row in theirs
    ]
    # A blank line is no row, and a row that is broken over lines begins where it begins.
    assert ours["_row"][:] == [2, 4, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no header"),
        ("prompt,completion\na,b\n\nc\n", "line 4: 1 fields, but the header has 2 (prompt, completion)"),
        ('prompt,completion\n"a\nb",c\nd,e,f\n', "line 4: 3 fields"),
        ('prompt,completion\na,b\n"c,d\ne,f\n', "line 3: the row that begins here cannot be read"),
        ("prompt,prompt\na,b\n", "line 1: the column `prompt` is there twice"),
        ("prompt,_row\na,b\n", "the column `_row` has the name"),
        ("prompt,completion\na,b\n,d\n", "line 3: `prompt` is missing"),
    ],
)
def test_a_faulty_table_is_named_by_file_and_line(tmp_path, text, message):
    path = tmp_path / "data.csv"
    path.write_text(text)
    assert message in refused(path) and str(path) in refused(path)


def test_bytes_of_another_encoding_are_named(tmp_path):
    for name, text in (("data.csv", "prompt,completion\na,b\nc,d\nGröße,e\n"), ("data.txt", "a\nb\nc\nGröße\n")):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        assert f"{name}, line 4: not UTF-8 text" in refused(tmp_path / name, layout="documents")
    (tmp_path / "cut.jsonl").write_bytes('{"text": "a"}\n{"text": "b"}'.encode("utf-16")[:-1])
    assert "not UTF-16 text" in refused(tmp_path / "cut.jsonl", layout="documents")
    (tmp_path / "torn.csv.gz").write_bytes(gzip.compress(b"prompt\n" + os.urandom(1000).hex().encode())[:-600])
    assert "torn.csv.gz cannot be read" in refused(tmp_path / "torn.csv.gz")


def test_lines_of_plain_text_are_documents(tmp_path):
    (tmp_path / "data.txt").write_bytes("\ufeffOnce upon\r\n\r\n  a time\n \nthere".encode())
    train = load(tmp_path / "data.txt", layout="documents").train
    assert train["text"][:] == ["Once upon", "  a time", "there"] and train["_row"][:] == [1, 3, 5]


@pytest.mark.parametrize("name", ["data", "examples", "questions"])
def test_the_list_of_an_object_is_the_rows(tmp_path, name):
    (tmp_path / "data.json").write_text(json.dumps({"by": "me", name: ROWS, "size": 3}, indent=1))
    assert load(tmp_path / "data.json").train["day"][:] == [row["day"] for row in ROWS]


def test_an_object_that_is_a_row_or_has_two_lists(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"prompt": chat(), "completion": chat("assistant"), "tools": [{"name": "add"}]}))
    assert len(load(path).train) == 1
    path.write_text(json.dumps({"prompt": "a", "completion": "b", "tools": [{"name": "add"}]}, indent=2))
    train = load(path).train
    assert train["prompt"][:] == ["a"] and train["tools"][:] == [[{"name": "add"}]]
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}, indent=2))
    assert load(path).train["completion"][:] == ["b"]
    path.write_text(json.dumps({"easy": ROWS, "hard": ROWS}))
    assert "holds several lists of objects (easy, hard)" in refused(path)
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    assert "holds several splits (train, test)" in refused(path) and "(train.jsonl, test.jsonl)" in refused(path)


# Several files


def several(folder):
    """Four rows in three files: a column that one lacks, one that is null throughout, objects of several shapes."""
    folder.mkdir()
    tools = [{"name": "add", "parameters": {"x": 1}}], [{"name": "find", "parameters": {"q": "a", "n": None}}]
    first = {"prompt": "p1", "completion": "c1", "day": "2024-01-31", "note": None, "tools": tools[0]}
    write_jsonl(folder / "a.jsonl", [first, {**first, "prompt": "p2"}])
    (folder / "b.json").write_text(json.dumps([{"prompt": "p3", "completion": "c3", "note": "n", "tools": tools[1]}]))
    (folder / "c.csv").write_text("prompt,completion,day\np4,c4,2024-02-29\n")
    return folder


def reads(folder, way):
    return {
        "pattern": str(folder / "*.*"),
        "every folder": str(folder.parent / "**" / "[a-c].*"),
        "list": [str(folder / name) for name in ("a.jsonl", "b.json", "c.csv")],
        "patterns": [str(folder / "a*"), str(folder / "[bc].*")],
        "folder": str(folder),
        "folder/": f"{folder}/",
    }[way]


def load_several(name, **keys):
    return load(name, **keys) if isinstance(name, str) else load("", **{"dataset_name": name, **keys})


@pytest.mark.parametrize("way", ["pattern", "every folder", "list", "patterns", "folder", "folder/"])
def test_several_files_keep_the_promises_of_one(tmp_path, way):
    splits = load_several(reads(several(tmp_path / "mix"), way))
    train = splits.train
    assert train["prompt"][:] == ["p1", "p2", "p3", "p4"]
    assert train["day"][:] == ["2024-01-31", "2024-01-31", None, "2024-02-29"]
    assert train["note"][:] == [None, None, "n", None]
    assert [row and row[0]["parameters"] for row in train["tools"]] == [
        {"x": 1},
        {"x": 1},
        {"q": "a", "n": None},
        None,
    ]
    assert [where(splits.source, row).split("mix/")[-1] for row in train["_row"]] == [
        "a.jsonl, line 1",
        "a.jsonl, line 2",
        "b.json, row 1",
        "c.csv, line 2",
    ]


@pytest.mark.parametrize("way", ["pattern", "list", "folder"])
def test_a_faulty_row_of_several_files_is_named_by_its_own(tmp_path, way):
    folder = several(tmp_path / "mix")
    write_jsonl(folder / "a.jsonl", [{"prompt": "p", "completion": "c"}, {"prompt": "", "completion": "c"}])
    with pytest.raises(UserError) as caught:
        load_several(reads(folder, way))
    assert str(caught.value).startswith(f"{folder / 'a.jsonl'}, line 2: `prompt` is empty")
    write_jsonl(folder / "a.jsonl", [{"prompt": "p", "completion": "c"}])
    (folder / "b.json").write_text('[{"prompt": "p", "completion": "c"}, {"prompt": 7, "completion": "c"}]')
    with pytest.raises(UserError) as caught:
        load_several(reads(folder, way))
    assert str(caught.value).startswith(f"{folder / 'b.json'}, row 2: `prompt` is 7, but other rows hold string")


def test_held_out_rows_and_slices_of_several_files(tmp_path):
    pattern = str(several(tmp_path / "mix") / "*.*")
    splits = load(pattern, dataset_train_split="train[:50%]", dataset_test_split="train[50%:]")
    assert (splits.train["prompt"][:], splits.test["prompt"][:]) == (["p1", "p2"], ["p3", "p4"])
    assert where(splits.test_source, splits.test["_row"][1]).endswith("c.csv, line 2")
    drawn = load(pattern, test_split_size=1)
    assert where(drawn.test_source, drawn.test["_row"][0]).startswith(str(tmp_path / "mix"))


def test_the_files_of_a_folder_may_be_splits(tmp_path, caplog):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train-a.jsonl", "train-b.jsonl", "test.jsonl", "other.jsonl"):
        write_jsonl(folder / name, [{"prompt": name, "completion": "2024-01-31"}])
    (folder / "README.md").write_text("# My rows\n")
    (folder / "LICENSE").write_text("free\n")
    splits = load(folder)
    assert "other.jsonl, which is of no split by its name" in caplog.text and "train-a" not in caplog.text
    assert splits.train["prompt"][:] == ["train-a.jsonl", "train-b.jsonl"]
    assert splits.test["prompt"][:] == ["test.jsonl"]
    assert splits.train["completion"][:] == ["2024-01-31"] * 2
    assert where(splits.test_source, 1) == f"{folder} (test), line 1"


def test_parquet_files_of_a_folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, size in (("a", 3), ("b", 2)):
        Dataset.from_list([{"prompt": f"{name}{n}", "completion": "c"} for n in range(size)]).to_parquet(
            folder / f"{name}.parquet"
        )
    splits = load(folder)
    assert splits.train["prompt"][:] == ["a0", "a1", "a2", "b0", "b1"] and splits.train.cache_files
    assert [where(splits.source, row).split("data/")[-1] for row in (3, 4)] == ["a.parquet, row 3", "b.parquet, row 1"]
    # Other columns, one of them null in the first file, and objects of another shape.
    more = [{"prompt": chat(), "completion": chat("assistant"), "note": "n", "tools": [{"name": "add"}]}]
    Dataset.from_list([{**more[0], "note": None, "tools": [{"name": "find", "strict": True}]}]).to_parquet(
        folder / "a.parquet"
    )
    Dataset.from_list(
        more,
        features=Features(
            {
                "prompt": List({"role": Value("string"), "content": Value("string")}),
                "completion": List({"role": Value("string"), "content": Value("string")}),
                "note": Value("string"),
                "tools": List({"name": Value("string")}),
            }
        ),
    ).to_parquet(folder / "b.parquet")
    train = load(folder).train
    assert train["note"][:] == [None, "n"] and train["tools"][:] == [
        [{"name": "find", "strict": True}],
        [{"name": "add"}],
    ]
    Dataset.from_list([{"prompt": 5, "completion": "c"}]).to_parquet(folder / "c.parquet")
    assert f"but int64 in {folder / 'c.parquet'}; write the same type in both" in refused(folder)


# What is no file to be read


def test_pipes_devices_and_wrong_patterns_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.docx").write_text("")
    write_jsonl(tmp_path / "right.jsonl", [{"prompt": "a"}])
    for name, message in [
        (tmp_path / "rows.jsonl", "but a pipe, a socket or a device"),
        ("/dev/zero", "but a pipe, a socket or a device"),
        (tmp_path / "none*.jsonl", "no file matches"),
        (tmp_path / "*.jsonl", "but a pipe, a socket or a device"),
        (tmp_path / "sub" / "*", "notes.docx, which"),
        (tmp_path / "*b", "is a folder"),
        ([str(tmp_path / "right.jsonl"), "arithmetic"], "`arithmetic` is no file"),
        ([str(tmp_path / "right.jsonl"), "owner/name"], "`owner/name` is no file"),
        ([str(tmp_path / "right.jsonl"), str(tmp_path / "sub")], "sub` is no file"),
        ([str(tmp_path / "right.jsonl"), str(tmp_path / "wrong.jsonl")], "wrong.jsonl (looked in"),
        ([], "dataset_name is missing"),
    ]:
        with pytest.raises(UserError) as caught:
            check_name(name if isinstance(name, list) else str(name))
        assert message in str(caught.value)


def test_integers_of_64_bits_and_more(tmp_path):
    rows = [{"prompt": "p", "completion": "c", "id": 2**64 - 1}, {"prompt": "q", "completion": "d", "id": None}]
    assert load(write_jsonl(tmp_path / "a.jsonl", rows)).train["id"][:] == [2**64 - 1, None]
    rows.append({"prompt": "r", "completion": "e", "id": 2**70})
    path = write_jsonl(tmp_path / "b.jsonl", rows[1:])
    assert f"line 2: `id` holds {2**70}, which has more than 64 bits; write it as a text." in refused(path)
    assert load(path, on_bad_row="drop").train["prompt"][:] == ["q"]


def test_types_of_tables_that_datasets_does_not_know(tmp_path):
    tool = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"name": "f", "n": 1}']))
    switches = pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64()))
    columns = {
        "id": pa.array([UUID(int=1).bytes, UUID(int=2).bytes], pa.uuid()),
        "prompt": pa.array(["p", "q"], pa.string_view()),
        "completion": ["c", "d"],
        "made": pa.array([[{"by": [("x", "y")]}], []], pa.list_(pa.struct({"by": pa.map_(pa.string(), pa.string())}))),
        "chat_template_kwargs": switches,
        "tools": pa.ListArray.from_arrays([0, 1, 1], tool),
    }
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "a.parquet"
    pq.write_table(pa.table(columns), path)
    expected = {
        "id": [f"00000000-0000-0000-0000-00000000000{n}" for n in (1, 2)],
        "made": [[{"by": {"x": "y"}}], []],
        "chat_template_kwargs": [{"a": 1}, None],
        "tools": [[{"name": "f", "n": 1}], []],
    }
    for source in (path, path.parent):
        train = load(source).train
        assert {name: train[name][:] for name in expected} == expected
    rows = [row for _, row in parquet_rows(path)]
    assert {name: [row[name] for row in rows] for name in expected} == expected


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": ["a", "b"], "completion": ["c", "d"]},
        {"prompt": {"0": "a", "1": "b"}, "completion": {"0": "c", "1": "d"}},
        {"x1": {"prompt": "a", "completion": "c"}, "x2": {"prompt": "b", "completion": "d"}},
    ],
)
def test_columns_are_no_rows(tmp_path, value):
    (tmp_path / "data.json").write_text(json.dumps(value))
    assert "data.json holds no list of rows, but columns or rows by name" in refused(tmp_path / "data.json")


def test_a_row_of_objects_is_no_column(tmp_path):
    row = {"prompt": "a", "chosen": chat("assistant", "b")[0], "rejected": chat("assistant", "c")[0]}
    (tmp_path / "data.json").write_text(json.dumps(row))
    assert len(load(tmp_path / "data.json", layout="comparisons").train) == 1


def test_a_file_that_several_patterns_match_is_read_once(tmp_path):
    for name in "ab":
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": name, "completion": "x"}])
    rows = load_splits_of([str(tmp_path / "b.jsonl"), str(tmp_path / "*.jsonl"), str(tmp_path / "a*")])
    assert rows == ["b", "a"]


def load_splits_of(names):
    return load_splits(RecipeArguments(dataset_name=names), seed=0, needs_demonstration=True).train["prompt"][:]

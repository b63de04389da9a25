"""Questions about pages as VRAG, ViDoSeek and SlideVQA store them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpt_trl.data.arguments import DataArguments
from hpt_trl.data.loading import load_splits
from hpt_trl.errors import UserError

VRAG = {
    "uid": "04d8_2",
    "query": "At which temperature is it steamed?",
    "reference_answer": "195-205 Centigrade",
    "meta_info": {
        "file_name": "Pretreatment_of_Switchgrass.pdf",
        "reference_page": [10, 11],
        "source_type": "Text",
        "query_type": "Multi-Hop",
    },
}
SLIDE = {
    "deck_name": "roadshow-2011.v1-phpapp02_95",
    "deck_url": "https://example.org/deck",
    "image_urls": ["https://example.org/1.jpg"],
    "qa_id": 7,
    "question": "How much is the profit in 2011?",
    "answer": "12.5 bn",
    "arithmetic_expression": "None",
    "evidence_pages": [5],
    "reasoning_type": "Single-Hop",
    "answer_type": "Single-Span",
}
# As VRAG's script for parquet writes it.
PARQUET = {
    "data_source": "slidevqa_train",
    "prompt": [{"role": "user", "content": "Answer the given question. Question: How long is it?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "9 m"},
    "extra_info": {
        "split": "test",
        "index": 0,
        "answer": "9 m",
        "question": "How long is it?",
        "content_type": "Nan",
        "reason_type": "Nan",
        "file_name": "Bridges.pdf",
        "reference_page": [3, 3, 1],
    },
}


def load(path, **keys):
    return load_splits(DataArguments(dataset_name=str(path), **keys), seed=0, needs_demonstration=False).train


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(text):
    return [{"role": "user", "content": text}]


def test_vrag_and_vidoseek(tmp_path, caplog):
    one_page = {**VRAG, "reference_answer": "12", "meta_info": {"file_name": "a.b.PPTX", "reference_page": "4"}}
    numbered = [VRAG, one_page]
    (tmp_path / "object.json").write_text(json.dumps({"examples": numbered}, indent=2))
    (tmp_path / "list.json").write_text(json.dumps(numbered))
    write(tmp_path / "lines.jsonl", numbered)
    for name in ("object.json", "list.json", "lines.jsonl"):
        caplog.clear()
        rows = load(tmp_path / name)
        assert rows["prompt"] == [asked("At which temperature is it steamed?")] * 2
        assert rows["answer"] == ["195-205 Centigrade", "12"]
        assert rows["reference_pages"] == [
            ["Pretreatment_of_Switchgrass_10", "Pretreatment_of_Switchgrass_11"],
            ["a.b_4"],
        ]
        assert rows["uid"] == ["04d8_2"] * 2 and "meta_info" not in rows.column_names
        assert "is read as the layout of VRAG and ViDoSeek" in caplog.text


def test_slidevqa(tmp_path):
    rows = load(write(tmp_path / "train.jsonl", [SLIDE, {**SLIDE, "evidence_pages": [20, 1]}]))
    assert rows["prompt"][0] == asked("How much is the profit in 2011?")
    assert rows["answer"] == ["12.5 bn"] * 2
    # The name of a deck keeps its dots.
    assert rows["reference_pages"] == [
        ["roadshow-2011.v1-phpapp02_95_5"],
        ["roadshow-2011.v1-phpapp02_95_20", "roadshow-2011.v1-phpapp02_95_1"],
    ]


def test_the_parquet_of_vrag_without_its_instructions(tmp_path):
    pq.write_table(pa.Table.from_pylist([PARQUET]), tmp_path / "overall_train.parquet")
    rows = load(tmp_path / "overall_train.parquet")
    assert rows["prompt"] == [asked("How long is it?")] and rows["answer"] == ["9 m"]
    assert rows["reference_pages"] == [["Bridges_3", "Bridges_1"]]


def test_other_data_stays_as_it_is(tmp_path):
    rows = load(write(tmp_path / "own.jsonl", [{"prompt": "a", "answer": "b", "query": "c", "meta_info": {"x": 1}}]))
    assert rows["prompt"] == ["a"] and rows["meta_info"] == [{"x": 1}]
    # A mapped prompt is the user's word on what is asked.
    keys = {"column_mapping": {"prompt": "question"}}
    assert load(write(tmp_path / "slides.jsonl", [SLIDE]), **keys)["prompt"] == ["How much is the profit in 2011?"]
    # An object of one line is a line of JSON.
    (tmp_path / "line.json").write_text('{"prompt": "a", "examples": "none"}')
    assert load(tmp_path / "line.json")["prompt"] == ["a"]


def changed(row, **values):
    meta = {
        **row.get("meta_info", {}),
        **{key: values.pop(key) for key in ("file_name", "reference_page") if key in values},
    }
    return {**row, **values, **({"meta_info": meta} if "meta_info" in row else {})}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (changed(VRAG, query=None), "`query` is missing"),
        (changed(VRAG, query="  "), "`query` is '  '"),
        (changed(VRAG, reference_answer=None), "`reference_answer` is missing"),
        (changed(VRAG, reference_answer=""), "`reference_answer` is ''"),
        (changed(VRAG, file_name=None), "`meta_info.file_name` is missing"),
        (changed(VRAG, file_name=""), "`meta_info.file_name` is ''"),
        (changed(VRAG, reference_page=None), "`meta_info.reference_page` is missing"),
        (changed(VRAG, reference_page=[]), "`meta_info.reference_page` is []"),
        (changed(VRAG, reference_page=[0]), "from 1"),
        (changed(VRAG, reference_page=[-2]), "from 1"),
        (changed(VRAG, reference_page=[None]), "from 1"),
        ({**VRAG, "meta_info": None}, "`meta_info.file_name` is missing"),
        (changed(SLIDE, question=None), "`question` is missing"),
        (changed(SLIDE, answer=None), "`answer` is missing"),
        (changed(SLIDE, deck_name=None), "`deck_name` is missing"),
        (changed(SLIDE, evidence_pages=None), "`evidence_pages` is missing"),
        (changed(SLIDE, evidence_pages=[]), "`evidence_pages` is []"),
    ],
)
def test_a_row_without_what_it_needs_is_named(row, message, tmp_path):
    good = VRAG if "query" in row else SLIDE
    path = write(tmp_path / "rows.jsonl", [good, row, good])
    with pytest.raises(UserError) as refused:
        load(path)
    assert str(refused.value).startswith(f"{path}, line 2: ") and message in str(refused.value)


def test_pages_that_are_no_numbers_are_named(tmp_path):
    path = write(tmp_path / "rows.jsonl", [changed(VRAG, reference_page=["4"]), changed(VRAG, reference_page=["four"])])
    with pytest.raises(UserError, match=r"line 2: `meta_info.reference_page` is \['four'\]"):
        load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"examples": []}', "has no rows"),
        ('{"examples": [3]}', "row 1: 3 is not an object"),
        ('{"examples": [{"query": 1}, "x"]}', "row 2: 'x' is not an object"),
        ('{"examples": [{"query": "a"}]', "line 1: not valid JSON"),
        ('{\n  "examples": [{"query": "a"}]\n', "line 1: not valid JSON"),
        ('{"rows": [{"asked": "a"}]}', "no column `prompt`"),
    ],
)
def test_files_of_another_form_are_refused(text, message, tmp_path):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(UserError) as refused:
        load(tmp_path / "rows.json")
    assert message in str(refused.value)

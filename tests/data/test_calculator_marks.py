"""GSM8K's calculator marks are left out, and code is left alone."""

import logging
import time

import pytest

from hpt_trl.data.calculator_marks import _without_marks
from tests.helpers.datasets import load, write_jsonl

CODE = [
    "y <<= 4 >> 2;",
    "x = 1 <<3; y = (2>>1);",
    "std::cout << 3 + 4 << '=' << 7 >> 2;",
    "cout << 1=2;",
    "a <<\n3=3\n>> b",
    "cat <<EOF\n1=1\nEOF\nx >> 2",
    "kernel<<<1, 256>>>(x);  // <<<2=2>>>",
    "flags = 1 <<4 | 5>> 2",
    "if (1 <<2==4>> 0)",
    "cin >> a; b <<= 2 * 3 >> 1;",
    "git merge: <<<<<<< 1\n=======\n>>>>>>> 2",
    "<<=4>> is no sum",
    "<<x=4>> and <<4=x>>",
]


@pytest.mark.parametrize("text", CODE)
def test_code_stays(tmp_path, caplog, text):
    with caplog.at_level(logging.WARNING):
        rows = load(write_jsonl(tmp_path / "data.jsonl", [{"prompt": "Write code.", "completion": text}])).train
    assert rows["completion"][:] == [text] and not caplog.text


@pytest.mark.parametrize(
    "mark",
    ["48/2=24", "20*.2=4", "24+1,000=1024", "100*10%=10", "1/2*3=3/2", "5=5", "(3-5)*2=-4", "2 + 3 = 5", "7/3=2.33"],
)
def test_marks_go(tmp_path, caplog, mark):
    row = {"prompt": "How many?", "completion": f"It is <<{mark}>>so.\n#### 1"}
    with caplog.at_level(logging.WARNING):
        rows = load(write_jsonl(tmp_path / "data.jsonl", [row, row | {"completion": "#### 1"}])).train
    assert rows["completion"][0] == "It is so.\n#### 1"
    assert caplog.text.count("are left out of 1 of 2 rows") == 1


@pytest.mark.parametrize("text", ["a<<b " * 10_000, "<< " * 20_000, "<<1=" + " " * 20_000, "<<1=1" + " " * 60_000])
def test_long_texts_are_read_in_linear_time(text):
    before = time.process_time()
    assert _without_marks(text) == text
    assert time.process_time() - before < 1


def test_marks_go_from_messages_and_from_comparisons(tmp_path):
    messages = [
        {"role": "user", "content": "What is <<1+1=2>>?"},
        {"role": "assistant", "content": "1 + 1 = <<1+1=2>>2", "weight": 1},
    ]
    path = write_jsonl(tmp_path / "data.jsonl", [{"messages": messages}])
    row = load(path, layout="demonstrations").train[0]
    assert row["prompt"] == messages[:1]
    assert row["completion"] == [{"role": "assistant", "content": "1 + 1 = 2", "weight": 1}]
    path = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "<<1+1=2>>2", "rejected": "<<1+1=3>>3"}])
    row = load(path, layout="comparisons").train[0]
    assert (row["chosen"], row["rejected"]) == ("2", "3")

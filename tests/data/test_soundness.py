"""What no table can hold is named with its row: half characters, deep nesting, null bytes in names, flipped bytes."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.datasets import load, refused

GOOD = {"prompt": "a", "completion": "b"}


def nested(depth: int) -> dict:
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"prompt": "a\ud800"}, "`prompt` holds half a character"),
        ({"prompt": [{"role": "user", "content": "\udc00"}]}, "`prompt` holds half a character"),
        ({"tools": [{"name": {"\ud800": 1}}]}, "`tools` holds half a character"),
        ({"\ud800": 1}, "`?` holds half a character"),
        ({"tools": nested(200)}, "`tools` is nested deeper than 30 levels; write it as JSON text"),
        ({"tools": nested(900)}, "`tools` is nested deeper than 30 levels"),
        ({"a\0": 1}, r"the column 'a\x00' has a null byte in its name"),
    ],
    ids=range(7),
)
def test_a_row_that_no_table_can_hold_is_named(tmp_path, bad, said):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [GOOD, GOOD | bad]))
    message = refused(path)
    assert "rows.jsonl, line 2: " in message and said in message and len(message.encode()) < 400


def test_whole_characters_and_what_is_nested_as_usual_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD | {"prompt": "\U0001f600 \0 é", "tools": [nested(20)]}) + "\n")
    assert load(path).train[0]["prompt"] == "\U0001f600 \0 é"


def test_a_flipped_byte_of_a_table_is_told(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.Table.from_pylist([GOOD | {"prompt": "unmistakable"}]), path, compression="none", use_dictionary=False
    )
    path.write_bytes(path.read_bytes().replace(b"unmistakable", b"unmist\x80kable"))
    message = refused(path)
    assert "rows.parquet cannot be read" in message and "UTF8" in message.replace("-", "").upper()

"""What no table can hold is named with its row: half characters, deep nesting, null bytes in names, flipped bytes."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.datasets import load, refused, write_jsonl

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


@pytest.mark.parametrize("name", [b"pro\0pt", b"pro\x80pt"])
def test_a_flipped_byte_of_a_columns_name_is_told(tmp_path, name):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD]), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"prompt", name))
    assert "rows.parquet cannot be read" in refused(path)


def _talk(said):
    return f'[{{"role": "user", "content": "Hi"}}, {{"role": "assistant", "content": {said}}}]'


_GOOD = _talk('"x"')
_TURN, _OTHER = '{"from": "gpt", "value": "x"}', '{"from": "gpt", "value": "y"}'
_CALL = '[{"from": "human", "value": "Hi"}, {"from": "function_call", "value": "%s"}]'


@pytest.mark.parametrize(
    "bad, message",
    [
        (_talk(r'"\ud83d"'), " holds half a character"),
        (_talk('"x", "extra": ' + "[" * 600 + "]" * 600), " is nested deeper than"),
        (_talk('"x", "extra": ' + '{"a":' * 300 + "1" + "}" * 300), " is nested deeper than"),
        (_talk('"x", "extra": 12345678901234567890123'), " holds 12345678901234567890123, which has more than 64 bits"),
        ("[" * 600 + "]" * 600, ""),
        ("[b'x']", " is"),
        ("[{'role': 'user', 'content': 2+3j}]", " is"),
    ],
)
@pytest.mark.parametrize("form", ["messages", "prompt", "chosen", "conversations"])
def test_what_text_holds_is_told_by_its_row(tmp_path, bad, message, form):
    def row(text):
        if form in ("messages", "prompt"):
            return {form: text}
        if form == "chosen":
            return {"chosen": text, "rejected": _talk('"other"')}
        return {"conversations": text, "chosen": _TURN, "rejected": _OTHER}

    layout = {"messages": "demonstrations", "prompt": "prompts"}.get(form, "comparisons")
    path = write_jsonl(tmp_path / "data.jsonl", [row(_GOOD), row(bad), row(_GOOD)])
    said = refused(path, layout=layout, needs_demonstration=False)
    assert said.startswith(f"{path}, line 2: `{form}`{message}"), said
    train = load(path, layout=layout, needs_demonstration=False, on_bad_row="drop").train
    assert train["_row"][:] == [1, 3]


@pytest.mark.parametrize(
    "call, arguments",
    [(r"{\"name\": \"f\", \"arguments\": \"{1, 2}\"}", "{1, 2}"), (r"{'name': 'f', 'arguments': {'x': 1}}", {"x": 1})],
)
def test_arguments_of_a_call_are_json_or_text(tmp_path, call, arguments):
    path = write_jsonl(tmp_path / "data.jsonl", [{"messages": _CALL % call}] * 2)
    row = load(path, layout="prompts", needs_demonstration=False).train[0]
    assert row["completion"][0]["tool_calls"][0]["function"]["arguments"] == arguments


def test_a_conversation_that_is_no_list_beside_preferences(tmp_path):
    rows = [{"conversations": text, "chosen": _TURN, "rejected": _OTHER} for text in (_GOOD, "oops")]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    assert f"{path}, line 2: `conversations` is 'oops'; write a list" in refused(path, layout="comparisons")
    assert len(load(path, layout="comparisons", on_bad_row="drop").train) == 1


def test_messages_as_text_among_plain_prompts(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": text} for text in ("plain", "[1, 2]", _GOOD)])
    said = refused(path, needs_demonstration=False)
    assert said.startswith(f"{path}, line 3: `prompt` is [{{'role'") and "write a text, as in the first row" in said
    assert load(path, needs_demonstration=False, on_bad_row="drop").train["prompt"][:] == ["plain", "[1, 2]"]

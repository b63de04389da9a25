"""What a pipeline reads of its folder: files that are broken are told, or are no output; never a traceback."""

import json

import pytest

from hpt_trl.errors import UserError
from hpt_trl.pipeline.record import has_weights, output_of, read_record

STAGE = {"stage": "sft", "uses": [], "measure": None, "contents": {}}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"pipeline": "p", "order": [], "stages": []}',
        '{"pipeline": "p", "order": [], "stages": null}',
        '{"pipeline": "p", "order": null, "stages": {}}',
        '{"pipeline": "p", "order": ["a"], "stages": {"a": []}}',
        '{"pipeline": "p", "order": ["a"], "stages": {"a": {"stage": "sft"}}}',
    ],
)
def test_a_broken_record_is_told(tmp_path, text):
    (tmp_path / "pipeline.json").write_text(text)
    with pytest.raises(UserError, match=r"pipeline\.json is not the record of a pipeline.*--overwrite true"):
        read_record(tmp_path)


def test_a_folder_is_no_record(tmp_path):
    (tmp_path / "pipeline.json").mkdir()
    with pytest.raises(UserError, match=r"pipeline\.json is not the record of a pipeline"):
        read_record(tmp_path)


def test_a_record_comes_back(tmp_path):
    assert read_record(tmp_path).stages == {}
    (tmp_path / "pipeline.json").write_text(json.dumps({"pipeline": "p", "order": ["a"], "stages": {"a": STAGE}}))
    record = read_record(tmp_path)
    record.write()
    assert read_record(tmp_path) == record and record.stages["a"].stage == "sft"


def test_broken_outputs_are_none(tmp_path):
    results = tmp_path / "results.json"
    for text, counts in (('{"trained": true}', True), ("{}", True), ('{"trained": false}', False)):
        results.write_text(text)
        assert bool(output_of(tmp_path)) == counts
    for broken in ('{"trained": tr', "", "[]", "null", "\x00"):
        results.write_text(broken)
        assert output_of(tmp_path) == ""
    (tmp_path / "config.json").write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    for broken in ("{", "[]", "{}", '{"weight_map": []}'):
        index.write_text(broken)
        assert not has_weights(tmp_path)

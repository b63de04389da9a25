"""Files of JSON lines whose texts hold what other readers take for the end of a line."""

import errno
import glob
import json
import os

import pytest

from hpt_trl.files import lines_of, matching, parsed_json, sync_to_disk
from hpt_trl.methods.critic.results import read_curves
from hpt_trl.methods.reward.shift import read_scores
from hpt_trl.reading import read_metrics
from hpt_trl.token_scores.page import read_samples
from hpt_trl.token_scores.samples import TokenSamples
from tests.helpers.tiny import build_tokenizer

# Each is the end of a line to `str.splitlines`.
TEXT = "one\u2028two\u2029three\u0085four\u000b\u000c\u001c five"


def test_lines_end_at_line_feeds_alone(tmp_path):
    path = tmp_path / "lines.jsonl"
    for text, lines in (("", []), ("\n", [""]), ("a\nb", ["a", "b"]), (f"{TEXT}\n\nb\n", [TEXT, "", "b"])):
        path.write_text(text, encoding="utf-8")
        assert lines_of(path) == lines


def test_a_mark_before_the_first_line_is_none_of_its_characters(tmp_path):
    (tmp_path / "lines.jsonl").write_text("a\nb\n", encoding="utf-8-sig")
    assert lines_of(tmp_path / "lines.jsonl") == ["a", "b"]


def test_json_that_is_nested_too_deep_is_an_error_of_its_value():
    assert parsed_json('{"a": [1]}') == parsed_json(b'{"a": [1]}') == {"a": [1]}
    for text in ("[" * 100_000, '{"a":' * 100_000, "{"):
        with pytest.raises(ValueError):
            parsed_json(text)


SCORES = {"prompt": TEXT, "chosen": 1.0, "rejected": 0.0, "chosen_key": TEXT, "rejected_key": TEXT}


@pytest.mark.parametrize(
    "name, line, read",
    [
        ("metrics.jsonl", {"step": 1, "text": TEXT}, read_metrics),
        ("scores.jsonl", SCORES, read_scores),
        ("value_curves.jsonl", dict.fromkeys(("prompt", "right", "wrong"), TEXT), read_curves),
        ("samples.jsonl", {"text": TEXT}, lambda folder: read_samples(folder / "samples.jsonl", ["text"], [])),
    ],
)
def test_texts_in_the_files_of_a_run_are_read_whole(tmp_path, name, line, read):
    (tmp_path / name).write_text(2 * (json.dumps(line, ensure_ascii=False) + "\n"), encoding="utf-8")
    assert read(tmp_path) == [line, line]


def test_samples_of_tokens_are_added_to(tmp_path):
    tokenizer = build_tokenizer()
    samples = TokenSamples(tmp_path / "samples.jsonl", tokenizer)
    for step in (1, 2, 4):
        samples.write(step, tokenizer(TEXT)["input_ids"], {"text": TEXT})
    found = [json.loads(line) for line in lines_of(tmp_path / "samples.jsonl")]
    assert [(line["step"], line["text"]) for line in found] == [(1, TEXT), (2, TEXT), (4, TEXT)]


def test_a_disk_that_orders_folders_by_itself_is_taken_at_its_word(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")

    def refuse(opened):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    sync_to_disk(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync_to_disk(tmp_path / "file")


@pytest.mark.parametrize(
    "pattern",
    ["**/*.jsonl", "d/**/*.jsonl", "d/**/e/*", "*/**/f/**/*.jsonl", "d/[ef]/*.jsonl", "d/**/none", "x[[]1]/**/*.jsonl"],
)
def test_patterns_match_what_glob_finds(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    for folder in ("d/e/f/g", "d/f/e", "d/.hidden", "x[1]/y"):
        os.makedirs(folder)
    for folder, _, _ in os.walk("."):
        (tmp_path / folder / "rows.jsonl").write_text("")
    for one in (pattern, str(tmp_path / pattern)):
        assert sorted(map(os.path.normpath, matching(one))) == sorted(
            set(map(os.path.normpath, glob.glob(one, recursive=True)))
        )


def test_links_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "rows.jsonl").write_text("")
    for name in ("a", "b"):
        (tmp_path / "d" / name).symlink_to(".")
    (tmp_path / "d" / "c").symlink_to("../elsewhere")
    assert matching(f"{tmp_path}/d/**/*.jsonl") == [f"{tmp_path}/d/c/rows.jsonl"]

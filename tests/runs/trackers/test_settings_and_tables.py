"""Secrets, flat settings, figures and tables by hand-written cases."""

import math

import pytest
from datasets import Dataset

from hpt_trl.runs.trackers.figures import figures_of
from hpt_trl.runs.trackers.settings import flattened
from hpt_trl.runs.trackers.tables import LONGEST, Table, cell, every, held_out_samples, table_of, trained_rows
from hpt_trl.settings.masking import MASK, masked
from tests.helpers.trackers import cells


@pytest.mark.parametrize(
    "name", ["hub_token", "token", "api_key", "judge_api_key", "apikey", "password", "client_secret", "Authorization"]
)
def test_a_secret_is_found_by_its_name(name):
    assert masked({name: "x", "nested": [{name: "y"}]}) == {name: MASK, "nested": [{name: MASK}]}
    assert masked({name: None}) == {name: None}


@pytest.mark.parametrize(
    "name", ["eos_token", "pad_token", "max_tokens", "judge_api_key_env", "key", "tokenizer_name_or_path", "hidden"]
)
def test_what_is_no_secret_stays(name):
    assert masked({name: "<|end|>"}) == {name: "<|end|>"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hf_abcdefghijklmnop", MASK),
        ("https://me:pass@host/x", f"https://{MASK}@host/x"),
        ("see https://host/a:b@c", "see https://host/a:b@c"),
        ("sk-proj-0123456789abcdef and more", f"{MASK} and more"),
        ("outputs/hf_ab", "outputs/hf_ab"),
    ],
)
def test_a_secret_is_found_by_how_it_is_written(text, shown):
    assert masked({"command": [text]}) == {"command": [shown]}


def test_flattened():
    assert flattened({"a": {"b": {"c": 1}, "d": []}, "e": {}, "f": None}) == {"a.b.c": 1, "a.d": [], "e": {}, "f": None}


def test_figures():
    results = {
        "recipe": "mine",
        "before": {"accuracy": 0.25, "accuracy_interval": [0.1, 0.5], "completions": [{"reward": 1.0}], "held_out": {}},
        "after": {"accuracy": 0.75, "rewards": {"one": 2.0, "none": None}, "samples": 4, "success_reward": "one"},
        "trained": True,
        "versions": {"torch": 2.0},
        "warnings": [],
        "wall_time_s": {"total": 3.5},
        "overlap": None,
    }
    assert figures_of(results) == {
        "before/accuracy": 0.25,
        "before/accuracy_interval/low": 0.1,
        "before/accuracy_interval/high": 0.5,
        "after/accuracy": 0.75,
        "after/rewards/one": 2.0,
        "after/samples": 4,
        "trained": 1.0,
        "wall_time_s/total": 3.5,
        "change/accuracy": 0.5,
    }


def test_cells():
    assert cell("x" * (LONGEST + 1)) == "x" * (LONGEST - 1) + "…" and cell("x" * LONGEST) == "x" * LONGEST
    assert cell(math.nan) is None and cell(math.inf) is None and cell(True) is True and cell(None) is None
    assert cell([{"role": "user", "content": "Hello"}]) == "Hello"
    assert cell([1, 2]) == "[1, 2]"


def test_a_table_has_every_column_of_its_rows():
    table = table_of([{"a": 1, "b": "x"}, {"b": "y", "c": 2.0}])
    assert table.columns == {"a": [1, None], "b": ["x", "y"], "c": [None, 2.0]}
    assert table.rows == [[1, "x", None], [None, "y", 2.0]]
    assert not table_of([]) and table_of([]).rows == []


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "<script>alert(1)</script> & <b>",
        "two\nlines\n\nand an empty one",
        "| pipes | **stars** | `ticks` # *x* _y_",
        "    four spaces\n- a list\n```\ncode\n```",
        "[a](javascript:x) &amp; &lt;td&gt;",
        "an end </td></tr></table> in it",
        "half a character \ud800".encode("utf-8", "replace").decode(),
    ],
)
def test_tensorboard_shows_a_cell_as_it_stands(text):
    (header, row) = cells(Table({"<name>": [text], "n": [0.123456]}).as_html())
    assert header == ["<name>", "n"] and row == [text, "0.1235"]


def test_control_characters_are_shown_as_pictures():
    assert cells(Table({"a": ["\x00\x02\x03\x1b\x7f\t"]}).as_html())[1] == ["␀␂␃␛␡␉"]


def test_rows_of_the_data():
    rows = Dataset.from_list([{"prompt": f"p{i}", "chosen": "c", "rejected": "r", "source": "s"} for i in range(20)])
    table = trained_rows(rows)
    assert list(table.columns) == ["prompt", "chosen", "rejected"] and table.columns["prompt"] == [
        f"p{i}" for i in range(8)
    ]
    assert not trained_rows(Dataset.from_list([{"pages": "x"}]))


def test_samples_of_one_side_alone():
    line = {"prompt": "p", "answer": None, "completion": "c", "rewards": {"one": 1.0}}
    assert list(held_out_samples(None, {"completions": [line]}).columns) == ["prompt", "answer", "after", "after one"]
    assert not held_out_samples({"held_out": {"loss": 1.0}}, None)


@pytest.mark.parametrize(
    ("steps", "logging", "between"), [(4, 1, 1), (10, 1, 1), (25, 1, 3), (1000, 5, 100), (20, 50, 50), (-1, 1, 1)]
)
def test_steps_between_tables(steps, logging, between):
    assert every(steps, logging) == between

"""Rows: each layout with one row that is not as it should be, which is named, or is read as it stands and encoded."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpt_trl.data.loading import to_conversational
from hpt_trl.data.rendering import Encoder
from hpt_trl.errors import UserError
from hpt_trl.recipes.arguments import RecipeArguments
from tests.fuzz.bounds import CORPUS, bounded, examples, is_short
from tests.fuzz.strategies import LAYOUTS, ROWS, changed_rows
from tests.helpers.datasets import load
from tests.helpers.tiny import build_tokenizer

TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rows")


def told(path: Path, layout: str) -> str:
    """What is said of a file, or of the encoding of its rows; empty where nothing is."""
    with bounded():
        try:
            splits = load(path, layout=layout, needs_demonstration=layout != "prompts")
            splits = to_conversational(splits, TOKENIZER, RecipeArguments())
            encoder = Encoder(TOKENIZER, comparisons=layout == "comparisons")
            for row in splits.train:
                if layout == "documents":
                    encoder.document(row["text"])
                elif layout == "prompts":
                    encoder.prompt(row)
                for column in splits.answers if layout != "prompts" else ():
                    encoder.answered(row, column)
        except UserError as error:
            assert is_short(error), str(error)[:2000]
            return str(error)
    return ""


@pytest.mark.parametrize("path", sorted((CORPUS / "rows").iterdir()), ids=lambda path: path.name)
def test_what_was_found(path):
    for layout in {layout for some in LAYOUTS.values() for layout in some}:
        told(path, layout)


@pytest.mark.parametrize("name", ROWS)
@examples(15, 0.025)
@given(data=st.data())
def test_a_changed_row_is_named_or_read(folder, name, data):
    rows = [ROWS[name]] * 3
    at = data.draw(st.integers(0, 2))
    rows[at] = data.draw(changed_rows(ROWS[name]))
    path = folder / f"rows.{data.draw(st.sampled_from(['jsonl', 'json']))}"
    text = "".join(json.dumps(row) + "\n" for row in rows) if path.suffix == ".jsonl" else json.dumps(rows)
    path.write_text(text)
    for layout in LAYOUTS[name]:
        told(path, layout)

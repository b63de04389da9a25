"""Rows: each layout with one row that is not as it should be, which is named, or is read as it stands and encoded."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpt_trl.data.loading import to_conversational
from hpt_trl.data.rendering import Encoder
from hpt_trl.errors import UserError
from hpt_trl.recipes.arguments import RecipeArguments
from tests.fuzz.bounds import CORPUS, bounded, examples, is_short
from tests.fuzz.row_strategies import LAYOUTS, ROWS, changed_rows
from tests.helpers.datasets import load
from tests.helpers.tiny import build_tokenizer

TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rows")


def read(path: Path, layout: str, kind: str = "rows") -> tuple[list[Any], str]:
    """The tokens of each row as it is trained, or what is said of the file or of their encoding."""
    content = path.read_bytes()
    encoded = []
    try:
        with bounded(kind, content, path.suffix):
            splits = load(path, layout=layout, needs_demonstration=layout != "prompts")
            splits = to_conversational(splits, TOKENIZER, RecipeArguments())
            encoder = Encoder(TOKENIZER, comparisons=layout == "comparisons")
            for row in splits.train:
                if layout == "documents":
                    encoded.append([encoder.document(row["text"])])
                elif layout == "prompts":
                    encoded.append([encoder.prompt(row)])
                else:
                    encoded.append([encoder.answered(row, column) for column in splits.answers])
    except UserError as error:
        assert is_short(error), str(error)[:2000]
        return [], str(error)
    return encoded, ""


def named(said: str) -> set[int]:
    """The rows that a message begins with, counted from 0."""
    return {int(number) - 1 for number in re.findall(r"rows\.jsonl?, (?:row|line) (\d+): ", said)}


@pytest.mark.parametrize("path", sorted((CORPUS / "rows").iterdir()), ids=lambda path: path.name)
def test_what_was_found(path):
    for layout in {layout for some in LAYOUTS.values() for layout in some}:
        read(path, layout)


@pytest.mark.parametrize("name", ROWS)
@examples(12, 0.08)
@given(data=st.data())
def test_the_changed_row_is_named_or_read_and_the_others_are_as_they_were(folder, name, data):
    rows = [ROWS[name]] * 3
    path = folder / f"rows.{data.draw(st.sampled_from(['jsonl', 'json']))}"

    def write() -> None:
        lines = [json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines) if path.suffix == ".jsonl" else f"[{', '.join(lines)}]")

    at = data.draw(st.integers(0, 2))
    for layout in LAYOUTS[name]:
        write()
        right, unread = read(path, layout, "rows unchanged")
        rows[at] = data.draw(changed_rows(ROWS[name]))
        write()
        encoded, said = read(path, layout)
        if not (said or unread):
            assert [row for place, row in enumerate(encoded) if place != at] == right[:2]
        elif said and at:
            # What the first row holds decides how the others are read; what encodes a row does not know its number.
            assert named(said) == {at} or "the column `" in said or path.name not in said, said
        rows[at] = ROWS[name]

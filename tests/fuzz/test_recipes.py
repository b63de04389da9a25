"""Recipes: whatever stands in them, one answer, soon, which names every line that was planted wrong."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hpt_trl.errors import UserError
from hpt_trl.runs.early import check_run
from tests.fuzz.bounds import CORPUS, bounded, examples, is_short
from tests.fuzz.strategies import RAW, RECIPES, changed_recipes, recipe_dictionaries


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Where the recipes lie and are checked."""
    before, place = Path.cwd(), tmp_path_factory.mktemp("fuzz")
    os.chdir(place)
    yield place
    os.chdir(before)


def told(content: bytes) -> str:
    """What is said of a recipe; empty where nothing is."""
    Path("recipe.yaml").write_bytes(content)
    with bounded():
        try:
            check_run("recipe.yaml", [])
        except UserError as error:
            assert is_short(error), str(error)[:2000]
            return str(error)
    return ""


@pytest.mark.parametrize("path", sorted((CORPUS / "recipes").iterdir()), ids=lambda path: path.name)
def test_what_was_found(path):
    assert told(path.read_bytes())


@examples(60, 0.35)
@given(changed_recipes())
def test_changed_recipes(text):
    told(text.encode(errors="replace"))


@examples(60, 0.35)
@given(recipe_dictionaries())
def test_keys_with_any_values(values: dict[str, Any]):
    told(yaml.safe_dump(values, allow_unicode=True).encode(errors="replace"))


@examples(60, 0.2)
@given(RAW)
def test_what_is_no_recipe(content):
    told(content)


@examples(30, 0.1)
@given(st.data())
def test_every_planted_mistake_is_told(data):
    lines = data.draw(st.sampled_from(RECIPES)).read_text().splitlines()
    keys = [at for at, line in enumerate(lines) if re.match(r"[a-z_]+:", line) and not line.startswith("stage:")]
    wrong = data.draw(st.sets(st.sampled_from(keys), min_size=1, max_size=6))
    for at in wrong:
        lines[at] = re.sub(r"^(\w+)", r"\1_zz", lines[at])
    said = told("\n".join(lines).encode())
    for at in wrong:
        assert said.count(f"recipe.yaml, line {at + 1}, `{lines[at].partition(':')[0]}`: ") == 1, said

"""Recipes: whatever stands in them, one answer, soon, which names every line that was planted wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.state import AcceleratorState
from hypothesis import given

from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.recipes.stages import STAGE_MODULES, load_stage
from hpt_trl.recipes.values import checked_values
from hpt_trl.runs.early import check_run
from hpt_trl.settings.file import Sources, read_recipe_file
from tests.fuzz.bounds import CORPUS, examples, told_by
from tests.fuzz.recipe_strategies import (
    RAW,
    RECIPES,
    changed_recipes,
    planted_recipes,
    recipe_dictionaries,
    shaped_recipes,
)

RECIPE = Path("recipe.yaml")
pytestmark = pytest.mark.usefixtures("files_beside")


@pytest.fixture(scope="module", autouse=True)
def imported():
    """The stages' imports are no example's time."""
    for stage in STAGE_MODULES:
        load_stage(stage)


def told(content: bytes) -> list[str]:
    """What is said of a recipe."""
    RECIPE.write_bytes(content)
    return told_by("recipes", content, lambda: check_run("recipe.yaml", []))


def told_late(content: bytes, read: Callable[[], object]) -> list[str]:
    """What is said of the recipe that lies there once torch is imported, by what a run reads it with."""
    try:
        return told_by("recipes late", content, read)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def written(values: dict[str, Any]) -> bytes:
    return yaml.safe_dump(values, allow_unicode=True).encode(errors="replace")


@pytest.mark.parametrize("path", sorted((CORPUS / "recipes").iterdir()), ids=lambda path: path.name)
def test_what_was_found(path):
    content = path.read_bytes()
    assert told(content) or told_late(content, lambda: read_recipe(RECIPE))


@examples(40, 0.25)
@given(changed_recipes(RECIPES))
def test_changed_recipes(text):
    told(text.encode(errors="replace"))


@examples(40, 0.25)
@given(recipe_dictionaries())
def test_keys_with_any_values(values):
    told(written(values))


@examples(50, 0.15)
@given(RAW)
def test_what_is_no_recipe(content):
    told(content)


@examples(15, 0.25)
@given(shaped_recipes())
def test_early_and_late_say_the_same(values):
    content = written(values)
    early = told(content)
    of_keys = told_late(content, lambda: checked_values(Sources(read_recipe_file(RECIPE), {})))
    late = told_late(content, lambda: read_recipe(RECIPE))
    assert set(of_keys) <= set(early)
    assert late == of_keys or not of_keys
    assert len(set(late)) == len(late)


@examples(20, 0.1)
@given(planted_recipes())
def test_every_planted_mistake_is_told(planted):
    text, wrong = planted
    said = told(text.encode())
    for line, key in wrong.items():
        assert sum(one.startswith(f"recipe.yaml, line {line}, `{key}`: ") for one in said) == 1, (line, key, said)

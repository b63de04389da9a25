"""What was drawn is noted for the campaign when the tests are through; recipes have their files beside them."""

import os
from pathlib import Path

import pytest

from tests.fuzz.bounds import note_counts
from tests.fuzz.recipe_strategies import BESIDE


@pytest.fixture(scope="module")
def files_beside(tmp_path_factory):
    """The working directory, with the files that are named: what is drawn lies and is checked there."""
    before, place = Path.cwd(), tmp_path_factory.mktemp("fuzz")
    os.chdir(place)
    for name, text in BESIDE.items():
        Path(name).write_text(text)
    yield place
    os.chdir(before)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    note_counts()

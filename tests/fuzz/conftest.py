"""What was drawn is noted for the campaign when the tests are through."""

import pytest

from tests.fuzz.bounds import note_counts


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    note_counts()

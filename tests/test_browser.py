"""Tests that look at pages: skipped where a user has no browser, never in silence where all tests are to run."""

import pytest

from tests.helpers.browser import browser


@pytest.mark.parametrize("where", [None, "", "false", "0"])
def test_without_a_browser_a_test_is_skipped_and_says_what_is_missing(monkeypatch, tmp_path, where):
    monkeypatch.setenv("PATH", str(tmp_path))
    if where is None:
        monkeypatch.delenv("CI", raising=False)
    else:
        monkeypatch.setenv("CI", where)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        browser()


@pytest.mark.parametrize("where", ["true", "1", "yes"])
def test_in_ci_it_fails_and_says_how_to_install_one(monkeypatch, tmp_path, where):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", where)
    with pytest.raises(pytest.fail.Exception, match=r"no browser here; .*apt-get install chromium"):
        browser()
    (tmp_path / "chromium").write_text("#!/bin/sh\n")
    (tmp_path / "chromium").chmod(0o755)
    assert browser() == str(tmp_path / "chromium")

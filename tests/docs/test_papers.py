"""docs/papers.md has every paper that code, recipes, notebooks and pages name, and none that nothing names."""

import re

from tests.helpers.documents import PAGES
from tests.helpers.processes import ROOT

PAPERS = ROOT / "docs" / "papers.md"
FOLDERS = ("hpt_trl", "recipes", "benchmarks", "notebooks")
ARXIV = re.compile(r"(?<![\d.])((?:0[7-9]|1\d|2\d)(?:0[1-9]|1[0-2])\.\d{5})(?![\d])")


def named_by_the_code() -> set[str]:
    files = [
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml", ".ipynb", ".md", ".jinja")
    ]
    return {paper for path in files for paper in ARXIV.findall(path.read_text())}


def test_every_paper_in_use_is_in_the_table():
    rows = set(ARXIV.findall("\n".join(line for line in PAPERS.read_text().splitlines() if line.startswith("|"))))
    by_pages = {paper for page in PAGES if page != PAPERS for paper in ARXIV.findall(page.read_text())}
    assert len(named_by_the_code()) > 15
    assert rows >= named_by_the_code() | by_pages


def test_links_are_those_of_the_papers_that_they_name():
    for text, address in re.findall(r"\[([^\]]*)\]\(https?://arxiv\.org/\w+/([^)]*)\)", PAPERS.read_text()):
        assert text == address

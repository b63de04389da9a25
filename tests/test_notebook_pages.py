"""What the committed notebooks show, in a real browser: no complaint, and nothing that sticks out."""

import html
from pathlib import Path

import nbformat
import pytest

from tests.helpers import devtools
from tests.helpers.processes import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WIDTH = 1000
# Elements that stick out of the window.
_OUTSIDE = f"""[...document.querySelectorAll('body *')].filter(
  element => element.getBoundingClientRect().right > {WIDTH} + 1).map(element => element.outerHTML.slice(0, 80))"""
# Outputs in which there is nothing to see.
_EMPTY = """[...document.querySelectorAll('section')].filter(
  section => section.getBoundingClientRect().height < 12 ||
  !(section.innerText.trim() || section.querySelector('img, iframe'))).map(section => section.outerHTML.slice(0, 80))"""


def as_page(path: Path) -> tuple[str, int]:
    """The outputs of a notebook below each other, as a notebook shows the richest of each; and how many are HTML."""
    sections, pages = [], 0
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/html" in data:
                pages += 1
                sections.append(data["text/html"])
            elif "image/png" in data:
                source = "".join(data["image/png"].split())
                sections.append(f'<img style="max-width: 100%" src="data:image/png;base64,{source}">')
            elif text := data.get("text/plain", output.get("text", "")).strip():
                wrapped = "white-space: pre-wrap; overflow-wrap: anywhere"
                sections.append(f'<pre style="{wrapped}">{html.escape(text)}</pre>')
    body = "\n".join(f"<section>{section}</section>" for section in sections)
    head = f'<meta charset="utf-8"><link rel="icon" href="data:,"><title>{path.stem}</title>'
    return f"<!doctype html><html><head>{head}</head><body>{body}</body></html>", pages


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with devtools.opened(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_browser_shows_what_the_notebook_holds(path, tab, tmp_path):
    text, pages = as_page(path)
    assert pages >= 4
    page = tmp_path / "outputs.html"
    page.write_text(text, encoding="utf-8")
    for dark in (False, True):
        tab.open(page, width=WIDTH, dark=dark)
        assert tab.complaints() == []
        # What it is made of lies in the notebook.
        asked = [address for address in tab.requests() if not address.startswith(("data:", "about:"))]
        assert asked == [page.resolve().as_uri()]
        assert tab.ask("document.documentElement.scrollWidth") <= WIDTH
        assert tab.ask(_OUTSIDE) == [] and tab.ask(_EMPTY) == []
        assert tab.ask("[...document.images].filter(image => !image.naturalWidth).length") == 0


def test_what_is_wrong_with_a_page_is_seen(tab, tmp_path):
    page = tmp_path / "wrong.html"
    wide = (
        '<section><p style="width: 1200px">wide</p></section><section><img src="data:image/png;base64,AAAA"></section>'
    )
    page.write_text(f"<!doctype html><body>{wide}<section></section><script>nothing()</script></body>")
    tab.open(page, width=WIDTH)
    assert len(tab.complaints()) == 1 and tab.ask("document.documentElement.scrollWidth") > WIDTH
    assert len(tab.ask(_OUTSIDE)) == 1 and len(tab.ask(_EMPTY)) == 1
    assert tab.ask("[...document.images].filter(image => !image.naturalWidth).length") == 1

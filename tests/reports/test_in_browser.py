"""The page in a real browser: nothing asked for, no complaint, no sideways scrolling, curves that can be told apart."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hpt_trl.cli import main
from tests.helpers import devtools
from tests.helpers.browser import seen
from tests.reports.conftest import make_chain

# Elements that stick out of the window, but for those that scroll in a frame of their own.
_OUTSIDE = """[...document.querySelectorAll('main *')].filter(element => !element.closest('.wide')
  && element.getBoundingClientRect().right > innerWidth + 1).map(element => element.outerHTML.slice(0, 80))"""
# Of every curve of a chart its dashes, the form of its markers and whether they are filled.
_LOOKS = """[...document.querySelectorAll('figure')].map(chart => [...chart.querySelectorAll('svg[role=img] g')].map(
  curve => { const line = curve.querySelector('.line'), mark = curve.querySelector('.mark');
    return [line && getComputedStyle(line).strokeDasharray, mark.getAttribute('d').replace(/M[^m]*/g, '|').slice(0, 20),
            getComputedStyle(mark).fill] }))"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with devtools.opened(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def pages(made, tmp_path_factory) -> list[Path]:
    """A run with what may break a page, an evaluation, three runs side by side, and a pipeline."""
    root = tmp_path_factory.mktemp("pages")
    folders = {name: Path(shutil.copytree(made / name, root / name)) for name in ("one", "two", "sft", "measured")}
    hard, chain = Path(shutil.copytree(made / "one", root / "hard")), make_chain(made, root / "chain")
    found = json.loads((hard / "results.json").read_text())
    text = "<script>document.title='taken'</script><img src=http://127.0.0.1:9/x onerror=\"document.title='taken'\">"
    found["after"]["completions"][0] |= {"completion": text + "a" * 4000, "answer": "b" * 900}
    found["before"]["completions"][1]["completion"] = "\u202eabc \U0001f600 <style>body{display:none}</style>"
    found["model"] = "x" * 300
    found["command"] = "hpt-trl run " + "y" * 500
    found["warnings"] = [{"step": 3, "kind": "kl", "message": "z" * 400}]
    (hard / "results.json").write_text(json.dumps(found))
    (hard / "recipe.yaml").write_text(f"stage: grpo\n{'k' * 90}: {'v' * 400}\n")
    measured, compared = folders.pop("measured"), root / "compared.html"
    for words in ([hard], [measured], [*folders.values(), "--output", compared], [chain]):
        assert main(["report", *map(str, words)]) == 0
    return [hard / "report.html", measured / "report.html", compared, chain / "report.html"]


def test_pages_ask_for_nothing_and_fit(tab, pages):
    for page in pages:
        for width, dark in ((390, False), (390, True), (1280, False), (320, False)):
            tab.open(page, width=width, dark=dark)
            where = f"{page.parent.name}, {width} pixels"
            assert tab.complaints() == [], where
            assert tab.requests() == [page.resolve().as_uri()], where
            assert tab.ask("document.documentElement.scrollWidth") <= width, where
            assert tab.ask(_OUTSIDE) == [], where
            assert tab.ask("document.title") not in ("", "taken")
            assert tab.ask("getComputedStyle(document.body).display") == "block"
            # Also with all that is folded opened.
            tab.ask("document.querySelectorAll('details').forEach(element => element.open = true)")
            assert tab.ask("document.documentElement.scrollWidth") <= width, where
            assert tab.ask(_OUTSIDE) == [], where


def test_curves_are_drawn_and_told_apart_without_colour(tab, pages):
    for page in (pages[0], pages[2], pages[3]):
        tab.open(page, width=1280)
        charts = tab.ask(_LOOKS)
        assert charts and all(charts)
        for chart in charts:
            assert len({json.dumps(look) for look in chart}) == len(chart)
            assert len({look[0] for look in chart}) == len(chart), "two curves have the same dashes"
        lengths = tab.ask(
            "[...document.querySelectorAll('figure svg[role=img] .line')].map(path => path.getTotalLength())"
        )
        assert lengths and min(lengths) > 20


def test_text_stands_out_from_the_page_in_light_and_in_dark(tab, pages):
    """Contrast of 4.5 or more, as WCAG 2 asks for of text."""
    script = """['body', '.quiet', 'summary', '.better, .worse, .finished', 'thead th'].map(which => {
      const element = document.querySelector(which); return element && getComputedStyle(element).color })"""
    for dark in (False, True):
        tab.open(pages[3], width=1280, dark=dark)
        page = luminance(tab.ask("getComputedStyle(document.body).backgroundColor"))
        assert (page < 0.1) == dark
        for colour in filter(None, tab.ask(script)):
            brighter, darker = sorted((luminance(colour), page), reverse=True)
            assert (brighter + 0.05) / (darker + 0.05) >= 4.5, colour


def luminance(colour: str) -> float:
    """Relative luminance of a colour `rgb(r, g, b)`, as WCAG 2 defines it."""
    parts = np.array([int(part) for part in colour[4:-1].split(",")]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_a_picture_of_the_page_is_not_empty(pages, tmp_path):
    pixels = seen(pages[2], tmp_path / "page.png", width=1280, height=1600)
    grey = pixels.mean(-1)
    assert (grey < 120).mean() > 0.005 and (grey > 250).mean() > 0.5

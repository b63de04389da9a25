"""README and docs/ as pages: links, the table of recipes, the language of every block, and the way to every page."""

import re
import tomllib
from itertools import product
from urllib.parse import unquote

import pytest

from hpt_trl.recipes.bundled import bundled_recipes, recipe_name
from hpt_trl.recipes.stages import STAGE_MODULES
from tests.helpers.documents import COMMANDS, PAGES, SITE_ONLY, anchors, blocks, links
from tests.helpers.processes import ROOT

# What the other modules of this folder run or read, and what is shown as it is printed.
LANGUAGES = ("bash", "python", "yaml", "json", "text")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for line, target in links(page):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / unquote(path)).resolve() if path else page
        assert file.exists(), f"{page.name}:{line}: {target}"
        assert ROOT in file.parents, f"{page.name}:{line}: {target} lies outside of the repository"
        if anchor:
            assert anchor in anchors(file), f"{page.name}:{line}: {target}; there are {sorted(anchors(file))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_named_in_sentences_exist(page):
    for name in re.findall(r"docs/([a-z_]+\.(?:md|png|svg))", page.read_text()):
        assert (ROOT / "docs" / name).exists(), f"{page.name} names docs/{name}"


def test_no_page_is_left_out_of_the_site():
    listed = [
        name
        for block in re.findall(r"```\{toctree\}\n(.*?)```", SITE_ONLY.read_text(), flags=re.DOTALL)
        for name in block.splitlines()
        if name and not name.startswith(":")
    ]
    assert len(listed) == len(set(listed))
    assert set(listed) == {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}


def test_the_readme_is_short_and_leads_to_every_page():
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) < 200
    named = {target.partition("#")[0] for _, target in links(readme)}
    assert named >= {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if page != SITE_ONLY}


def test_the_readme_has_every_stage_and_every_recipe():
    text = (ROOT / "README.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    stages = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert set(STAGE_MODULES) <= stages
    named = {name for row in rows for cell in re.findall(r"`([^`]*)`", row) for name in expanded(cell)}
    assert named >= {recipe_name(path) for path in bundled_recipes()}
    assert {name for name in named if "/" in name} <= {recipe_name(path) for path in bundled_recipes()}


def test_the_readme_says_what_every_extra_is_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = (ROOT / "README.md").read_text().partition("| Extra |")[2].partition("\n\n")[0]
    named = {name for line in table.splitlines()[2:] for name in re.findall(r"`([a-z0-9-]+)`", line.split("|")[1])}
    assert named == set(project["optional-dependencies"])


def expanded(name: str) -> list[str]:
    """Names as a shell makes them of braces: `{a,b}/c` is a/c and b/c."""
    parts = [part[1:-1].split(",") if part.startswith("{") else [part] for part in re.split(r"(\{[^}]*\})", name)]
    return ["".join(choice) for choice in product(*parts)]


def test_every_block_is_of_a_kind_that_is_run_or_is_shown_as_it_is():
    for block in blocks():
        assert block.language in LANGUAGES, f"{block}: write one of {', '.join(LANGUAGES)} behind the fence"
        first = block.text.split()[0]
        assert block.language == "bash" or first not in COMMANDS, f"{block}: commands stand in a block of bash"

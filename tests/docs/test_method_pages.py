"""The pages of the methods have their parts: those of the README's stages that train, and visual retrieval's."""

import re

import pytest
from markdown_it import MarkdownIt

from hpt_trl.recipes.stages import STAGE_MODULES, load_stage
from tests.helpers.processes import ROOT

TABLE = re.compile(r"(?m)^\|.*\n(?:\|.*\n)+")
EQUATION = re.compile(r"\$\$.+?\$\$", re.DOTALL)
# Of an equation of a paper, or that there is none.
NUMBER = re.compile(r"\beq\. \d+|\bnumbers nothing\b")
RESULTS = re.compile(r"\]\(results\.md#[\w-]+\)")


def rows() -> dict[str, tuple[str, str]]:
    """Stage -> what it trains and its page, by the README's table of stages."""
    found = re.findall(r"(?m)^\| `(\w+)` \| (.+) \| \[\w+\]\(docs/(\w+\.md)\) \|$", (ROOT / "README.md").read_text())
    return {stage: (trained, page) for stage, trained, page in found if stage in STAGE_MODULES}


def pages() -> list[str]:
    """Names of the pages of the stages that train, and vrag.md."""
    return [*(page for trained, page in rows().values() if not trained.startswith("nothing")), "vrag.md"]


def sections(text: str) -> dict[str, str]:
    """Heading of the second level -> what stands below it; the page's beginning has none."""
    parts = re.split(r"(?m)^## (.+)$", text)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def header(table: str) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[0].strip("|").split("|")]


def is_of_settings(table: str) -> bool:
    """Whether a table sets what is here beside what a paper, or the project that it is after, has."""
    first, *others = header(table)
    return first == "Setting" and len(others) > 1 and bool(re.match(r"In |Source", others[-1]))


def is_of_metrics(table: str) -> bool:
    return header(table)[0].startswith("Metric")


def says_a_figure(measured: str) -> bool:
    """Whether a section says a number itself, outside of links and code, and leads to the results."""
    said = re.sub(r"`[^`]*`|\]\([^)]*\)", "", measured)
    return bool(RESULTS.search(measured)) and re.search(r"\d+\.\d+", said) is not None


def has_command(text: str) -> bool:
    fences = [token for token in MarkdownIt("commonmark").parse(text) if token.type == "fence"]
    return any(token.info == "bash" and re.search(r"(?m)^hpt-trl run \S+/", token.content) for token in fences)


PARTS = {
    "a picture": lambda text: re.search(r"!\[[^\]]+\]\(images/\S+\)", text) is not None,
    "an equation": lambda text: EQUATION.search(text) is not None,
    "its number in a paper, or that it has none": lambda text: any(
        EQUATION.search(part) and NUMBER.search(part) for part in sections(text).values()
    ),
    "settings beside the paper's": lambda text: any(map(is_of_settings, TABLE.findall(text))),
    "metrics": lambda text: any(map(is_of_metrics, TABLE.findall(text))),
    "a recipe's command": has_command,
    "what was measured here": lambda text: says_a_figure(sections(text).get("Measured here", "")),
}

# Part -> a page without it.
CUT = {
    "a picture": lambda text: re.sub(r"!\[", "[", text),
    "an equation": lambda text: EQUATION.sub("", text),
    "its number in a paper, or that it has none": lambda text: NUMBER.sub("", text),
    "settings beside the paper's": lambda text: TABLE.sub(
        lambda found: "" if is_of_settings(found.group()) else found.group(), text
    ),
    "metrics": lambda text: TABLE.sub(lambda found: "" if is_of_metrics(found.group()) else found.group(), text),
    "a recipe's command": lambda text: re.sub(r"(?m)^hpt-trl run ", "hpt-trl check ", text),
    "what was measured here": lambda text: re.sub(r"(?<=\d)\.(?=\d)", "", text),
}


def missing(text: str) -> list[str]:
    return [part for part, is_there in PARTS.items() if not is_there(text)]


def test_all_methods_are_looked_at():
    assert {"hybrid.md", "ppo.md", "rho1.md", "mtp.md", "critic.md", "pretrain.md", "vrag.md"} < set(pages())
    trains = [load_stage(stage).trains for stage in rows()]
    assert rows().keys() == set(STAGE_MODULES)
    assert trains == [not trained.startswith("nothing") for trained, _ in rows().values()]


@pytest.mark.parametrize("page", pages())
def test_methods_have_their_parts(page):
    assert not missing((ROOT / "docs" / page).read_text())


@pytest.mark.parametrize("part", PARTS)
def test_what_is_taken_out_is_missed(part):
    for page in pages():
        assert part in missing(CUT[part]((ROOT / "docs" / page).read_text())), page

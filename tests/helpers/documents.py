"""What README and docs/ hold: code blocks, commands within sentences, headings and links."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.helpers.processes import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Made of directives of Sphinx alone.
SITE_ONLY = ROOT / "docs" / "index.md"
COMMANDS = ("hpt-trl", "make", "pip", "python", "pytest", "source", "vllm")
_NOTE = re.compile(r"<!-- test: (.+?) -->")


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        language: What stands behind the fence; empty for an indented block.
        note: What an HTML comment `<!-- test: ... -->` before it says.
    """

    page: Path
    line: int
    language: str
    text: str
    note: str | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command, its words without comments.

    Attributes:
        variables: those of the environment that are set before it.
    """

    page: Path
    line: int
    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line} {shlex.join(self.words)}"


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def blocks(*languages: str) -> list[Block]:
    """The code blocks of these languages of all pages, or all of them."""
    found = []
    for page in PAGES:
        note = None
        for token in tokens(page) if page != SITE_ONLY else []:
            if token.type in ("fence", "code_block"):
                found.append(Block(page, token.map[0] + 1, token.info, token.content, note))
            match = _NOTE.fullmatch(token.content.strip()) if token.type == "html_block" else None
            note = match.group(1) if match else None
    return [block for block in found if not languages or block.language in languages]


def commands_of(block: Block) -> list[Command]:
    """The commands of a block of bash, lines that go on put together."""
    text = block.text.replace("\\\n", "")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [command(block.page, block.line, words) for words in lines if words]


def inline_commands() -> list[Command]:
    """Commands within sentences and tables, which begin with one of `COMMANDS`."""
    found = []
    for page in PAGES:
        for token in tokens(page):
            for part in token.children or []:
                text = part.content
                code = part.type == "code_inline" and " " in text and "://" not in text.split()[0]
                if code and _is_command(text):
                    found.append(command(page, token.map[0] + 1, shlex.split(text)))
    return found


def _is_command(text: str) -> bool:
    first = next((word for word in text.split() if not re.fullmatch(r"[A-Z_]+=\S*", word)), "")
    return first in COMMANDS


def command(page: Path, line: int, words: list[str]) -> Command:
    """A command of words as a shell splits them."""
    variables = []
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words[0].partition("=")
        variables.append((name, value))
        words = words[1:]
    return Command(page, line, tuple(words), tuple(variables))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings as GitHub makes them."""
    found: dict[str, int] = {}
    all_tokens = tokens(page)
    for token, content in pairwise(all_tokens):
        if token.type != "heading_open":
            continue
        text = "".join(part.content for part in content.children or [] if part.type in ("text", "code_inline"))
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
        if found[slug]:
            slug = f"{slug}-{found[slug]}"
            found[slug] = 0
    return set(found)


def links(page: Path) -> list[tuple[int, str]]:
    """Line and target of each link and picture of a page."""
    return [
        (token.map[0] + 1, str(part.attrs.get("href") or part.attrs.get("src")))
        for token in tokens(page)
        for part in token.children or []
        if part.type in ("link_open", "image")
    ]

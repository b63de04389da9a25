"""What docs/troubleshooting.md quotes as messages stands in the package's code."""

import ast
import re
from functools import cache

import pytest

from tests.helpers.documents import tokens
from tests.helpers.processes import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"


def literal(node: ast.AST) -> str | None:
    """The text of a string in the code, `…` for what is put in; None of anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(value.value if isinstance(value, ast.Constant) else "…" for value in node.values)
    return None


@cache
def said() -> str:
    """Every string of the package, a line each, without the marks of code and with one sign for what is put in."""
    found = []
    for path in (ROOT / "hpt_trl").rglob("*.py"):
        found += [text for node in ast.walk(ast.parse(path.read_text())) if (text := literal(node))]
    lines = [re.sub(r"%(\.\d)?[sdg]", "…", " ".join(text.split())).replace("`", "") for text in found]
    return "\n".join(lines)


def quoted() -> list[tuple[int, str]]:
    """Line and text of the code spans in the first columns that are messages: those with a space, no metrics."""
    found, first = [], False
    for token in tokens(PAGE):
        if token.type == "tr_open":
            first = True
        elif token.type == "inline" and first:
            first = False
            for part in token.children or []:
                if part.type == "code_inline" and " " in part.content:
                    found.append((token.map[0] + 1, part.content))
    return found


def test_messages_are_quoted():
    assert len(quoted()) > 30


@pytest.mark.parametrize(("line", "message"), quoted(), ids=lambda value: str(value)[:40])
def test_a_quoted_message_is_said(line, message):
    parts = [part.strip() for part in message.replace("`", "").split("…") if part.strip()]
    pattern = ".*".join(re.escape(part) for part in parts)
    assert re.search(pattern, said()), f"docs/troubleshooting.md:{line}: nothing in the package says {message!r}"

"""How something is shown: a piece of HTML by a template, a page, a picture; and whether in a notebook."""

import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpt_trl import pictures
from hpt_trl.templates import templates_of


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def rendered(template: str, **values: Any) -> str:
    """Returns a piece of HTML; what is filled in is escaped.

    Args:
        template: A file of this folder that extends `piece.html.jinja`.
    """
    environment = templates_of(Path(__file__).parent)
    environment.filters["number"] = number
    return environment.get_template(template).render(**values)


def number(value: float | None) -> str:
    """Returns a figure as tables write it."""
    return "\N{EN DASH}" if value is None else f"{value:.4g}"


class Page:
    """A page that needs nothing else; in a notebook its body stands among the other outputs, its styles for it alone.

    Args:
        text: The page, a whole HTML document.
        plain: What it shows, as text.
    """

    def __init__(self, text: str, plain: str):
        self.text, self.plain = text, plain

    def _repr_html_(self) -> str:
        # No frame: GitHub, and JupyterLab where a notebook is not trusted, take frames out with all that is in them.
        style, body = (self._inside(tag) for tag in ("style", "body"))
        # Of each kind of page its own: pages of several kinds stand in one notebook.
        name = f"hpt-trl-{hashlib.sha256(style.encode()).hexdigest()[:8]}"
        return rendered("page.html.jinja", name=name, style=scoped(style, f".{name}"), body=body)

    def __repr__(self) -> str:
        return self.plain

    def write(self, path: str | Path) -> Path:
        """Writes the page as a file for a browser; returns its path."""
        Path(path).write_text(self.text, encoding="utf-8")
        return Path(path)

    def _inside(self, tag: str) -> str:
        # What a page is filled with is escaped, so these tags are the document's.
        return self.text.partition(f"<{tag}>")[2].rpartition(f"</{tag}>")[0]


def scoped(style: str, inside: str) -> str:
    """Returns the rules of a style for what lies inside of an element alone; those of the page are the element's.

    Args:
        style: Rules, also in `@media`; no commas inside of a selector's brackets.
        inside: The element's selector.
    """

    def own(rule: re.Match[str]) -> str:
        if rule[1].lstrip().startswith("@"):
            return rule[0]
        names = [name.strip() for name in rule[1].split(",")]
        return ", ".join(inside if name in (":root", "body") else f"{inside} {name}" for name in names) + " {"

    return re.sub(r"([^{}]+)\{", own, re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL))


class Picture:
    """A picture.

    Args:
        draw: Returns the matplotlib figure; called when the picture is looked at.
        name: What it shows, in text.
    """

    def __init__(self, draw: Callable[[], Any], name: str):
        self._draw, self.name = draw, name

    def _repr_png_(self) -> bytes:
        return pictures.png(self._draw())

    def __repr__(self) -> str:
        return self.name

"""How something is shown: a piece of HTML by a template, a page in a frame, a picture; and whether in a notebook."""

import html
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpt_trl.pictures import png
from hpt_trl.templates import templates_of

# Pixels of a page's frame where it cannot ask for its own height.
_HEIGHT = 420


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
    """A page that needs nothing else, in a frame of its own.

    Args:
        text: The page, a whole HTML document.
        name: What it shows, in a line.
        most: Height of the frame, in pixels, from which on it scrolls.
    """

    def __init__(self, text: str, name: str, most: int = 800):
        self.text, self.name, self.most = text, name, most

    def _repr_html_(self) -> str:
        # Scripts do not run inside; the height is that of the page as soon as it is there.
        fit = f"this.style.height=Math.min({self.most},this.contentDocument.documentElement.scrollHeight+4)+'px'"
        return (
            f'<iframe title="{html.escape(self.name)}" sandbox="allow-same-origin" srcdoc="{html.escape(self.text)}" '
            f'onload="{fit}" style="width:100%;height:{_HEIGHT}px;border:1px solid rgb(128 128 128 / .35);'
            'border-radius:6px"></iframe>'
        )

    def __repr__(self) -> str:
        return self.name

    def write(self, path: str | Path) -> Path:
        """Writes the page as a file for a browser; returns its path."""
        Path(path).write_text(self.text, encoding="utf-8")
        return Path(path)


class Picture:
    """A picture.

    Args:
        draw: Returns the matplotlib figure; called when the picture is looked at.
        name: What it shows, in text.
    """

    def __init__(self, draw: Callable[[], Any], name: str):
        self._draw, self.name = draw, name

    def _repr_png_(self) -> bytes:
        return png(self._draw())

    def __repr__(self) -> str:
        return self.name

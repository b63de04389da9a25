"""Pages that show a text's tokens coloured by a number, from the samples that a run left.

A sample is a line of a JSON lines file, written while training (`hpt_trl.token_scores.samples`); a page is one HTML
file that needs nothing else. jinja2 is imported on use only.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.files import lines_of
from hpt_trl.templates import templates_of

# Shades on either side of the middle, and the share of the tokens that lie inside the deepest ones.
SHADES = 5
_INSIDE = 0.95


@dataclass(frozen=True)
class Span:
    """A token on the page.

    Attributes:
        text: as it stands in the sample.
        classes: of the template: `x` for a token that takes no part, `s` for a marked one, and its shade.
        title: its figures; None for none.
        tag: of HTML, so that what matters is seen without colours and styles too: `strong`, `em` or `span`.
    """

    text: str
    classes: str
    title: str | None
    tag: str


def span(text: str, *, mark: str, shade: int, title: str | None, strong: bool) -> Span:
    """Make a token's span.

    Args:
        mark: `x`, `s` or nothing.
        shade: -SHADES to SHADES, 0 for none.
        strong: whether it stands out in a text without colours.
    """
    colour = f"p{shade}" if shade > 0 else f"n{-shade}" if shade < 0 else ""
    tag = "strong" if strong else "em" if mark == "x" else "span"
    return Span(text.replace("\n", "↵\n") or "∅", f"{mark} {colour}".strip(), title, tag)


def marked_text(spans: Sequence[Span]) -> str:
    """Return the tokens as plain text, each run of strong ones between ⟦ and ⟧."""
    runs = [(tag, "".join(one.text for one in run)) for tag, run in groupby(spans, key=lambda one: one.tag)]
    return "".join(f"⟦{text}⟧" if tag == "strong" else text for tag, text in runs)


def shade_of(value: float | None, scale: float | None) -> int:
    """Return how deep a number's colour is, -SHADES to SHADES; 0 without one.

    Args:
        scale: the size that has the deepest colour.
    """
    if value is None or scale is None:
        return 0
    return round(SHADES * max(-1.0, min(1.0, value / scale)))


def scale_of(sizes: Sequence[float], least: float) -> float:
    """Return the size that all but the largest few stay below; `least` at the least."""
    ordered = sorted(abs(size) for size in sizes)
    return max(ordered[int(_INSIDE * (len(ordered) - 1))], least)


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the numbers that are there."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def shown_number(value: float | None, sign: bool = False) -> str:
    """Return a number as the page writes it."""
    return "\N{EN DASH}" if value is None else f"{value:+.2f}" if sign else f"{value:.2f}"


def write_page(path: Path, text: str) -> Path:
    """Write a page in one go; return its path."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def page_text(run: str, template: Path, samples: list[dict[str, Any]], **values: Any) -> str:
    """Return a page.

    Args:
        run: the run's name.
        template: extends `tokens.html.jinja`.
        samples: what it shows of each: `step`, `spans` and more of its own.
        values: what else it reads.
    """
    environment = templates_of(template.parent, Path(__file__).parent)
    environment.filters["figure"] = shown_number
    return environment.get_template(template.name).render(run=run, samples=samples, shades=SHADES, **values)


def read_samples(path: Path, keys: Sequence[str], lists: Sequence[str]) -> list[dict[str, Any]]:
    """Return the samples of a file; none without it.

    Args:
        keys: that each has.
        lists: those of them that hold one entry for each token, or null.

    Raises:
        UserError: a line is not a sample.
    """
    if not path.exists():
        return []
    samples = []
    for number, text in enumerate(lines_of(path), start=1):
        try:
            sample = json.loads(text)
        except ValueError:
            sample = None
        if not isinstance(sample, dict) or any(key not in sample for key in keys):
            raise UserError(f"{path}, line {number}: not a JSON object with {', '.join(keys)}; remove the line.")
        sizes = {key: len(sample[key]) for key in lists if sample[key] is not None}
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{size} of `{key}`" for key, size in sizes.items())
            raise UserError(f"{path}, line {number}: one entry per token is needed, found {found}; remove the line.")
        samples.append(sample)
    return samples

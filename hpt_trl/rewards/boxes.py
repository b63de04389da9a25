"""Boxes on pages: those that the data says a crop should show, and how far two agree."""

import math
from collections.abc import Sequence
from typing import Any

from hpt_trl.errors import UserError

Box = tuple[float, float, float, float]


def boxes_of(entries: Any) -> list[tuple[str, Box]]:
    """Page and box of each entry of column `reference_boxes`, in pixels of the page; none where a row has none.

    Raises:
        UserError: they are no list of `{page, box}`, or a box has no area on a page.
    """
    if entries is None:
        return []
    if not isinstance(entries, list | tuple):
        raise _no_box(entries)
    return [_page_and_box(entry) for entry in entries]


def overlap(one: Sequence[float], two: Sequence[float]) -> float:
    """Returns the intersection over union of two boxes [x1, y1, x2, y2], from 0 to 1; 0 for one without an area."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / (_area(one) + _area(two) - both)


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _page_and_box(entry: Any) -> tuple[str, Box]:
    if not isinstance(entry, dict) or not isinstance(entry.get("page"), str):
        raise _no_box(entry)
    box = entry.get("box")
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(type(side) in (int, float) for side in box):
        raise _no_box(entry)
    x1, y1, x2, y2 = box
    if not all(math.isfinite(side) for side in box) or x1 >= x2 or y1 >= y2 or x2 <= 0 or y2 <= 0:
        raise _no_box(entry)
    return entry["page"], (x1, y1, x2, y2)


def _no_box(entry: Any) -> UserError:
    text = repr(entry)
    return UserError(
        f"`reference_boxes` holds {text[:120]}{'…' if text[120:] else ''}, which is no box; write a list of "
        '{"page": "report_1", "box": [x1, y1, x2, y2]} in pixels of the page, with x1 below x2, y1 below y2, and x2 '
        "and y2 above 0."
    )

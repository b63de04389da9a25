"""Pictures of the tests' runs: each is made as it is, but drawn once for all that have the same panels.

Drawing the curves takes a quarter of a run of a few steps, and hundreds of runs draw the same. What tests start as
processes of their own draws for itself.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hpt_trl import pictures

_draw = pictures.png
_drawn: dict[str, bytes] = {}


def _panel(axes: Any) -> list[object]:
    """What drawing depends on, but for the values: words, scales, and how many points, drawn or not, of what."""
    words = [axes.get_title(where) for where in ("left", "center", "right")] + [text.get_text() for text in axes.texts]
    scales = [axes.get_xscale(), axes.get_yscale(), axes.get_xlabel(), axes.get_ylabel()]
    lines = []
    for line in axes.lines:
        values = np.asarray(line.get_ydata(), float)
        lines.append((line.get_label(), line.get_marker(), len(values), int(np.isfinite(values).sum())))
    return [words, scales, lines, len(axes.collections), len(axes.patches), len(axes.images)]


def _draw_once(figure: Any, *, dpi: int = 110) -> bytes:
    looks = repr([dpi, figure.get_size_inches().tolist(), [_panel(axes) for axes in figure.axes]])
    if looks not in _drawn:
        _drawn[looks] = _draw(figure, dpi=dpi)
    return _drawn[looks]


@pytest.fixture(scope="session", autouse=True)
def pictures_drawn_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "png", _draw_once)
        yield


@pytest.fixture
def pictures_drawn_anew(monkeypatch) -> None:
    """For tests of what is drawn."""
    monkeypatch.setattr(pictures, "png", _draw)

"""How pictures look, and how they are written: in one go, so that a killed run leaves the old one or the new one.

matplotlib is imported on use only, and without pyplot: a notebook's own pictures keep their backend.
"""

import io
import os
from pathlib import Path
from typing import Any

STYLE: Any = {
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 9,
    # Wide enough for dashes to be told apart.
    "legend.handlelength": 3.4,
}


def new_figure(rows: int, columns: int, size: tuple[float, float], **settings: Any) -> tuple[Any, Any]:
    """Makes a figure and its axes, an array of rows and columns; inside of `matplotlib.rc_context(STYLE)`.

    Args:
        size: Of the figure, in inches.
        settings: `layout` of the figure, `sharey` of its axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=settings.pop("layout", "constrained"))
    return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def png(figure: Any, *, dpi: int = 110) -> bytes:
    """Returns a figure as PNG."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    # Ticks are made as late as here.
    with rc_context(STYLE):
        figure.savefig(buffer, dpi=dpi, format="png")
    return buffer.getvalue()


def write_picture(figure: Any, path: Path) -> None:
    """Writes a matplotlib figure as PNG."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(png(figure, dpi=150))
    os.replace(temporary, path)

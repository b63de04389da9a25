"""How pictures look, and how they are written: in one go, so that a killed run leaves the old one or the new one.

matplotlib is imported by those who draw, on use only.
"""

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
}


def write_picture(figure: Any, path: Path) -> None:
    """Writes a matplotlib figure as PNG and closes it."""
    import matplotlib.pyplot as plt

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
    os.replace(temporary, path)

"""How the package makes pages of templates: what is filled in is escaped, and nothing may be missing.

jinja2 is imported on use only.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def templates_of(*folders: Path) -> "Environment":
    """Returns the templates of some folders, the first one's first; lines of statements alone leave nothing behind."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

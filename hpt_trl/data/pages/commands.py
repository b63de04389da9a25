"""The command `hpt-trl pages`: its words, and what it prints.

Nothing heavy is imported before the command is given.
"""

import argparse
from typing import Any

from hpt_trl.help_text import HelpText, path_word

_EXAMPLES = """\
examples:
  hpt-trl pages outputs/pages
  hpt-trl pages outputs/pages --size 400 --layouts table chart --test_layouts form --text_layer full"""


def add_commands(commands: Any) -> None:
    """Adds the command to the parser's."""
    pages = commands.add_parser(
        "pages",
        help="draw pages with questions about them",
        description="Draw a folder of pages to search (images, text layers, questions and where the answers stand); "
        "`dataset_name: pages` with the same options and folder trains on them.",
        epilog=_EXAMPLES,
        formatter_class=HelpText,
        allow_abbrev=False,
    )
    pages.add_argument("folder", type=path_word, metavar="FOLDER", help="new or empty folder")
    pages.add_argument("--size", type=int, help="training pages, one question each (200)")
    pages.add_argument("--test_size", type=int, help="held-out pages, one question each (50)")
    pages.add_argument("--layouts", nargs="+", metavar="LAYOUT", help="table, chart, text, form, swatch, disc (all)")
    pages.add_argument("--test_layouts", nargs="+", metavar="LAYOUT", help="of the held-out pages (the same)")
    pages.add_argument("--text_layer", help="what can be searched: titles (and labels), or full (titles)")
    pages.add_argument("--seed", type=int, help="draws everything (0)")


def pages(options: argparse.Namespace) -> None:
    """Draws a folder of pages and says what it holds.

    Raises:
        UserError: as for `page_settings` and `write_pages`.
    """
    from hpt_trl.data.pages.settings import page_settings
    from hpt_trl.data.pages.writing import write_pages

    given = {key: value for key, value in vars(options).items() if key not in ("command", "folder")}
    settings = page_settings({key: value for key, value in given.items() if value is not None}, "hpt-trl pages")
    folder = write_pages(options.folder, settings)
    print(f"{settings.size} training and {settings.test_size} held-out pages in {folder}")

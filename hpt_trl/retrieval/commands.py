"""The commands `hpt-trl index` and `hpt-trl search`: their words, and what they print.

Nothing heavy is imported before a command is given.
"""

import argparse
import time
from typing import TYPE_CHECKING, Any

from hpt_trl.help_text import HelpText, path_word
from hpt_trl.terminal import Column, flow, table

if TYPE_CHECKING:
    from hpt_trl.retrieval.pages import Hit

# Characters of a page's text in a line of `search`.
_SHOWN = 70

_INDEX_EXAMPLES = """\
examples:
  hpt-trl index my_pages indexes/mine
  hpt-trl index my_pages indexes/scanned --ocr --language german
  hpt-trl index my_pages indexes/vectors --kind text_vectors --model sentence-transformers/all-MiniLM-L6-v2"""

_SEARCH_EXAMPLES = """\
examples:
  hpt-trl search indexes/mine "What was sold most?"
  hpt-trl search indexes/mine "What was sold most?" --top_k 10 --json
  hpt-trl search http://host:8002 "What was sold most?" --timeout 30"""


def add_commands(commands: Any) -> None:
    """Adds both to the parser's commands."""
    index = commands.add_parser(
        "index",
        help="build a search index of page images and PDFs",
        description="Build an index of a folder of pages: images (with their texts in a pages.jsonl), and PDFs with "
        "their text layer. docs/retrieval.md says what is read.",
        epilog=_INDEX_EXAMPLES,
        formatter_class=HelpText,
        allow_abbrev=False,
    )
    index.add_argument(
        "pages", type=path_word, metavar="PAGES", help="folder of the pages; subfolders are read as well"
    )
    index.add_argument("index", type=path_word, metavar="INDEX", help="new folder for the index")
    index.add_argument(
        "--kind",
        default="lexical",
        help="lexical (words, by BM25; the default), text_vectors, image_vectors, text_multi_vectors, "
        "image_multi_vectors (of --model)",
    )
    index.add_argument("--model", help="of vectors: Hub id or folder that sentence-transformers loads")
    index.add_argument("--language", default="english", help="of words, for their stems; `none` for none")
    index.add_argument("--ocr", action="store_true", help="read the text of pages that have none from their image")
    index.add_argument("--on_bad_page", choices=["error", "skip"], default="error", help="what cannot be read")
    index.add_argument("--no_copy_images", action="store_true", help="refer to the images where they lie")
    index.add_argument("--pdf_dpi", type=int, default=144, help="pixels per inch of rendered PDFs (144)")
    index.add_argument("--overwrite", action="store_true", help="replace the index that lies there")
    search = commands.add_parser(
        "search",
        help="ask a search index or service",
        description="Print the pages that an index, or a service of VRAG's kind, finds for a query.",
        epilog=_SEARCH_EXAMPLES,
        formatter_class=HelpText,
        allow_abbrev=False,
    )
    search.add_argument(
        "index", type=path_word, metavar="INDEX", help="folder of an index, or http(s) address of a service"
    )
    search.add_argument("query", metavar="QUERY", help="what is searched, in quotes")
    search.add_argument("--top_k", type=int, default=5, help="pages at most (5)")
    search.add_argument("--reranker", help="query_likelihood:MODEL, or a cross-encoder of sentence-transformers")
    search.add_argument("--rerank_depth", type=int, help="pages that the reranker looks at (20)")
    search.add_argument("--timeout", type=float, help="seconds for a service's answer (10)")
    search.add_argument("--json", action="store_true", help="print the pages as JSON")
    search.add_argument("--retries", type=int, help="questions again to a service that fails (3)")


def index(options: argparse.Namespace) -> None:
    """Builds an index and says what it holds.

    Raises:
        UserError: as for `build_index`.
    """
    from hpt_trl.retrieval.index import build_index
    from hpt_trl.retrieval.rankers import IndexSettings

    settings = IndexSettings(
        kind=options.kind,
        model=options.model,
        language=options.language,
        ocr=options.ocr,
        on_bad_page=options.on_bad_page,
        copy_images=not options.no_copy_images,
        pdf_dpi=options.pdf_dpi,
    )
    started = time.perf_counter()
    built = build_index(options.pages, options.index, settings, overwrite=options.overwrite)
    said = f"Index:   {options.index} ({settings.kind}, {time.perf_counter() - started:.1f} s)"
    print(flow([*built.lines(), said]))


def search(options: argparse.Namespace) -> None:
    """Prints rank, score, name and first words of the pages that are found.

    Raises:
        UserError: as for `refuse_unused`, `open_engine` and `SearchEngine.search`.
    """
    hits = _hits(options)
    if not hits:
        # By vectors every page is found.
        reason = "" if options.index.startswith(("http://", "https://")) else ": none has a word of the query"
        print(f"No page is found{reason}.")
        return
    rows = []
    for rank, hit in enumerate(hits, start=1):
        text = " ".join(hit.page.text.split())
        shown = text if len(text) <= _SHOWN else text[: _SHOWN - 3].rpartition(" ")[0] + " ..."
        rows.append((str(rank), "-" if hit.score is None else f"{hit.score:.4g}", hit.name, shown))
    columns = (Column("", right=True), Column("", right=True), Column("", whole=True), Column("", below=True))
    print(table(columns, rows))


def search_data(options: argparse.Namespace) -> dict[str, Any]:
    """Returns what is found as values: of each page its whole text.

    Raises:
        UserError: as for `search`.
    """
    hits = [
        {"rank": rank, "score": hit.score, "page": hit.name, "text": hit.page.text}
        for rank, hit in enumerate(_hits(options), start=1)
    ]
    return {"query": options.query, "index": options.index, "hits": hits}


def _hits(options: argparse.Namespace) -> "list[Hit]":
    from hpt_trl.retrieval.engine import open_engine, refuse_unused

    settings = {name: getattr(options, name) for name in ("rerank_depth", "timeout", "retries")}
    given = {name: value for name, value in settings.items() if value is not None}
    refuse_unused(options.index, given, options.reranker)
    engine = open_engine(options.index, reranker=options.reranker, **given)
    (hits,) = engine.search([options.query], options.top_k)
    return hits

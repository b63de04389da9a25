"""The pages that answer a row's question, and whether an index has them."""

import logging
from typing import Any

from datasets import Dataset

from hpt_trl.data.sources import ROW, where
from hpt_trl.errors import UserError
from hpt_trl.retrieval.engine import SearchEngine

logger = logging.getLogger(__name__)

COLUMN = "reference_pages"


def references_of(row: dict[str, Any]) -> list[str]:
    """The names of a row's reference pages, none where it has none.

    Raises:
        UserError: they are no list of texts.
    """
    pages = row.get(COLUMN)
    if pages is None:
        return []
    if not isinstance(pages, list | tuple) or not all(isinstance(page, str) for page in pages):
        raise UserError(f"`{COLUMN}`: {pages!r} is no list of names of pages; write e.g. [report_1].")
    return list(pages)


def check_references(rows: Dataset, source: str, engine: SearchEngine) -> None:
    """Hold the reference pages of rows against an index, and say how many it lacks.

    Raises:
        UserError: a row's are no list of texts, or the index has none of all.
    """
    if COLUMN not in rows.column_names or engine.names is None:
        return
    missing: dict[str, int] = {}
    found = 0
    for number, pages in zip(rows[ROW], rows[COLUMN], strict=True):
        try:
            named = references_of({COLUMN: pages})
        except UserError as error:
            raise UserError(f"{where(source, number)}: {error}") from error
        for page in named:
            if page in engine.names:
                found += 1
            else:
                missing.setdefault(page, number)
    if not missing:
        return
    page, number = next(iter(missing.items()))
    told = (
        f"{where(source, number)}, `{COLUMN}`: the index has no page `{page}`; its pages are called like "
        f"`{next(iter(engine.names))}`"
    )
    if not found:
        raise UserError(f"{told}. It has none of the {len(missing)} pages that rows name.")
    logger.warning("%s. It lacks %d pages that rows name, which no rollout can find.", told, len(missing))

"""The pages that answer a row's question, the boxes on them, and whether an index has them."""

import logging
from collections.abc import Callable
from typing import Any

from datasets import Dataset

from hpt_trl.data.reading.places import where
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.errors import UserError
from hpt_trl.retrieval.engine import SearchEngine
from hpt_trl.retrieval.pages import to_raw
from hpt_trl.rewards.boxes import boxes_of

logger = logging.getLogger(__name__)

PAGES, BOXES = "reference_pages", "reference_boxes"


def references_of(row: dict[str, Any]) -> list[str]:
    """The names of a row's reference pages, none where it has none.

    Raises:
        UserError: they are no list of texts.
    """
    return _pages(row.get(PAGES))


def check_references(rows: Dataset, source: str, engine: SearchEngine | None) -> None:
    """Hold reference pages and boxes of rows against an index, and say how many of their pages it lacks.

    Args:
        engine: None looks at their form alone.

    Raises:
        UserError: a row's are of another form, or the index has none of the pages of all.
    """
    _check(rows, source, PAGES, _pages, engine)
    _check(rows, source, BOXES, lambda value: [page for page, _ in boxes_of(value)], engine)


def check_boxes(row: dict[str, Any], engine: SearchEngine) -> None:
    """Hold a row's boxes against the images of their pages.

    Raises:
        UserError: one lies outside of its page, or an image cannot be read.
    """
    for page, box in boxes_of(row.get(BOXES)):
        if engine.names is None or page not in engine.names:
            continue
        size = engine.image(page).size
        if to_raw(box, size, size) is None:
            raise UserError(
                f"`{BOXES}` holds {list(box)}, which is outside of the page {page} of {size[0]} x {size[1]} pixels."
            )


def _pages(value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(page, str) for page in value):
        raise UserError(f"`{PAGES}`: {value!r} is no list of names of pages; write e.g. [report_1].")
    return list(value)


def _check(
    rows: Dataset, source: str, column: str, pages_of: Callable[[Any], list[str]], engine: SearchEngine | None
) -> None:
    if column not in rows.column_names:
        return
    names = None if engine is None else engine.names
    missing: dict[str, int] = {}
    found = 0
    for number, (value,) in iterate_rows(rows, [column]):
        try:
            pages = pages_of(value)
        except UserError as error:
            raise UserError(f"{where(source, number)}: {error}") from error
        for page in pages:
            if names is None or page in names:
                found += 1
            else:
                missing.setdefault(page, number)
    if names is None or not missing:
        return
    page, number = next(iter(missing.items()))
    told = (
        f"{where(source, number)}, `{column}`: the index has no page `{page}`; its pages are called like "
        f"`{next(iter(names))}`"
    )
    if not found:
        raise UserError(f"{told}. It has none of the {len(missing)} pages that rows name.")
    logger.warning("%s. It lacks %d pages that rows name, which no rollout can find.", told, len(missing))

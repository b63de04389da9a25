"""Questions about pages of documents in the layouts of VRAG, ViDoSeek and SlideVQA, as prompts with reference pages.

A page is named as VRAG names its image: by the document without its ending, and the page's number from 1
(`Pretreatment_of_Switchgrass_10`).
"""

import logging
import re
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from hpt_trl.data.objects import with_column
from hpt_trl.data.reading.places import where
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.errors import UserError

logger = logging.getLogger(__name__)

# The endings of documents; the name of a slide deck may hold dots of its own.
_ENDING = re.compile(r"\.(pdf|pptx?|docx?)$", re.IGNORECASE)


@dataclass(frozen=True)
class _Layout:
    """Where a layout has what; each a column, and a field of it where the column is a struct."""

    name: str
    question: str
    answer: str
    document: str
    pages: str

    @property
    def paths(self) -> tuple[str, ...]:
        return self.question, self.answer, self.document, self.pages


# https://github.com/Alibaba-NLP/VRAG (README, scripts/hf_dataset_convert.py), https://github.com/nttmdlab-nlp/SlideVQA
_LAYOUTS = (
    _Layout("VRAG and ViDoSeek", "query", "reference_answer", "meta_info.file_name", "meta_info.reference_page"),
    _Layout(
        "VRAG's parquet",
        "extra_info.question",
        "extra_info.answer",
        "extra_info.file_name",
        "extra_info.reference_page",
    ),
    _Layout("SlideVQA", "question", "answer", "deck_name", "evidence_pages"),
)


def page_questions(dataset: Dataset, source: str) -> Dataset:
    """Return rows of a known layout with `prompt`, `answer` and `reference_pages`; other data as it is.

    The columns that these are made of are gone, all others stay. VRAG's parquet holds prompts with VRAG's own
    instructions, which are left out: it is the environment that says how to act.

    Raises:
        UserError: a row without question, answer, document or pages.
    """
    layout = next((layout for layout in _LAYOUTS if _fits(layout, dataset)), None)
    if layout is None:
        return dataset
    columns = list(dict.fromkeys(path.partition(".")[0] for path in layout.paths))
    made: dict[str, list[Any]] = {"prompt": [], "answer": [], "reference_pages": []}
    for row, values in iterate_rows(dataset, columns):
        held = dict(zip(columns, values, strict=True))
        place = where(source, row)
        question = _text(held, layout.question, place)
        document = _ENDING.sub("", _text(held, layout.document, place))
        made["prompt"].append([{"role": "user", "content": question}])
        made["answer"].append(_text(held, layout.answer, place))
        made["reference_pages"].append([f"{document}_{page}" for page in _pages(held, layout.pages, place)])
    logger.warning("%s is read as the layout of %s: prompt, answer and reference_pages.", source, layout.name)
    dataset = dataset.remove_columns([name for name in (*columns, "prompt") if name in dataset.column_names])
    for name, column in made.items():
        dataset = with_column(dataset, name, column)
    return dataset


def _fits(layout: _Layout, dataset: Dataset) -> bool:
    return all(_has(dataset, path) for path in layout.paths)


def _has(dataset: Dataset, path: str) -> bool:
    column, _, field = path.partition(".")
    if column not in dataset.column_names or not field:
        return column in dataset.column_names
    # Objects of several shapes are stored as JSON, and tell no fields.
    values = (value for _, (value,) in iterate_rows(dataset, [column]) if value is not None)
    first = next(values, None)
    return isinstance(first, dict) and field in first


def _reach(held: dict[str, Any], path: str) -> Any:
    column, _, field = path.partition(".")
    value = held[column]
    if not field:
        return value
    return value.get(field) if isinstance(value, dict) else None


def _text(held: dict[str, Any], path: str, place: str) -> str:
    value = _reach(held, path)
    # Numbers are answers too; lists and objects are not.
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
        said = "is missing" if value is None else f"is {value!r:.60}"
        raise UserError(f"{place}: `{path}` {said}; write a text, or drop the row.")
    return str(value).strip()


def _pages(held: dict[str, Any], path: str, place: str) -> list[int]:
    value = _reach(held, path)
    listed = value if isinstance(value, list) else [value]
    numbers = [int(page) if isinstance(page, str) and page.strip().isdecimal() else page for page in listed]
    if not numbers or any(isinstance(page, bool) or not isinstance(page, int) or page < 1 for page in numbers):
        said = "is missing" if value is None else f"is {value!r:.60}"
        raise UserError(
            f"{place}: `{path}` {said}; write the numbers of the pages that answer, from 1, or drop the row."
        )
    return list(dict.fromkeys(numbers))

"""Questions about pages of documents in the layouts of VRAG, ViDoSeek and SlideVQA, as prompts with reference pages.

A page is named as VRAG names its image: by the document without its ending, and the page's number from 1
(`Pretreatment_of_Switchgrass_10`).
"""

import re
from typing import Any

from hpt_trl.data.forms.form import Columns, Form, Parts

# The endings of documents; the name of a slide deck may hold dots of its own.
_ENDING = re.compile(r"\.(pdf|pptx?|docx?)$", re.IGNORECASE)


class _FaultyPart(ValueError):
    """A part of a row that no prompt can be made of."""


def _page_form(name: str, said: str, question: str, answer: str, document: str, pages: str, *replaced: str) -> Form:
    """The form of rows that have the four at these paths: a column each, or a field of it where it is a struct."""
    paths = {"question": question, "answer": answer, "document": document, "pages": pages}

    def looks(first: Parts) -> bool:
        fields = {part: path.partition(".")[2] for part, path in paths.items()}
        return all(
            not field or (isinstance(first[part], dict) and field in first[part]) for part, field in fields.items()
        )

    def convert(parts: Parts, columns: Columns) -> Parts | str:
        try:
            asked = _text(parts["question"], question)
            stem = _ENDING.sub("", _text(parts["document"], document))
            return {
                "prompt": [{"role": "user", "content": asked}],
                "answer": _text(parts["answer"], answer),
                "reference_pages": [f"{stem}_{page}" for page in _pages(parts["pages"], pages)],
            }
        except _FaultyPart as fault:
            return str(fault)

    return Form(
        name,
        "prompts",
        f"the layout of {said} (question → prompt, its pages → reference_pages)",
        {part: (path.partition(".")[0],) for part, path in paths.items()},
        convert,
        looks=looks,
        replaced=replaced,
    )


# https://github.com/Alibaba-NLP/VRAG (README, scripts/hf_dataset_convert.py), https://github.com/nttmdlab-nlp/SlideVQA.
# VRAG's parquet holds prompts with VRAG's own instructions, which are left out: the environment says how to act.
PAGE_FORMS = (
    _page_form(
        "vrag",
        "VRAG and ViDoSeek",
        "query",
        "reference_answer",
        "meta_info.file_name",
        "meta_info.reference_page",
    ),
    _page_form(
        "vrag-parquet",
        "VRAG's parquet",
        "extra_info.question",
        "extra_info.answer",
        "extra_info.file_name",
        "extra_info.reference_page",
        "prompt",
    ),
    _page_form("slidevqa", "SlideVQA", "question", "answer", "deck_name", "evidence_pages"),
)


def _reach(value: Any, path: str) -> Any:
    field = path.partition(".")[2]
    if not field:
        return value
    return value.get(field) if isinstance(value, dict) else None


def _text(held: Any, path: str) -> str:
    value = _reach(held, path)
    # Numbers are answers too; lists and objects are not.
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
        said = "is missing" if value is None else f"is {value!r:.60}"
        raise _FaultyPart(f"`{path}` {said}; write a text, or drop the row.")
    return str(value).strip()


def _pages(held: Any, path: str) -> list[int]:
    value = _reach(held, path)
    listed = value if isinstance(value, list) else [value]
    numbers = [int(page) if isinstance(page, str) and page.strip().isdecimal() else page for page in listed]
    if not numbers or any(isinstance(page, bool) or not isinstance(page, int) or page < 1 for page in numbers):
        said = "is missing" if value is None else f"is {value!r:.60}"
        raise _FaultyPart(f"`{path}` {said}; write the numbers of the pages that answer, from 1, or drop the row.")
    return list(dict.fromkeys(numbers))

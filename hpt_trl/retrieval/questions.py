"""Questions with their reference pages, and how well an engine finds these."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.files import lines_of, parsed_json
from hpt_trl.retrieval.engine import SearchEngine
from hpt_trl.retrieval.measures import ndcg, recall_at

# Of the measures' names: pages that count.
FIRST, FEW = 1, 5


@dataclass(frozen=True)
class Question:
    """A question and the names of the pages that answer it."""

    query: str
    reference_pages: tuple[str, ...]


def read_questions(path: str | Path) -> list[Question]:
    """Reads a file of JSON lines, {"query": ..., "reference_pages": [...]}; other keys are left alone.

    Raises:
        UserError: the file is missing or empty, or a line is not of that kind.
    """
    try:
        lines = lines_of(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    found = [_question(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f'{path} holds no questions; write lines like {{"query": "...", "reference_pages": ["a_1"]}}.')
    return found


def _question(line: str, where: str) -> Question:
    try:
        row: Any = parsed_json(line)
    except ValueError as error:
        raise UserError(f"{where} is no JSON: {error}.") from error
    row = row if isinstance(row, dict) else {}
    query, pages = row.get("query"), row.get("reference_pages")
    if not isinstance(query, str) or not query.strip():
        raise UserError(f"{where}, `query`: {query!r} is not allowed; allowed: the question's text.")
    if not isinstance(pages, list) or not pages or not all(isinstance(page, str) for page in pages):
        raise UserError(f"{where}, `reference_pages`: {pages!r} is not allowed; allowed: a list of names of pages.")
    return Question(query, tuple(pages))


def refuse_unknown(questions: Sequence[Question], names: Sequence[str], index: str) -> None:
    """Looks whether an index has every reference page.

    Raises:
        UserError: it lacks some; the message names the first.
    """
    known = set(names)
    wanted = dict.fromkeys(page for question in questions for page in question.reference_pages)
    lacking = [page for page in wanted if page not in known]
    if lacking:
        raise UserError(
            f"{index} lacks {len(lacking)} of the questions' reference pages, e.g. `{lacking[0]}`; its pages "
            f"are called like `{names[0]}`."
        )


def measure(engine: SearchEngine, questions: Sequence[Question]) -> dict[str, float]:
    """Means over the questions: recall among the first page and the first five, and NDCG of the first five."""
    rankings = engine.search([question.query for question in questions], FEW)
    named = [
        ([hit.name for hit in hits], question.reference_pages)
        for hits, question in zip(rankings, questions, strict=True)
    ]
    count = len(questions)
    return {
        f"recall@{FIRST}": sum(recall_at(FIRST, ranking, pages) for ranking, pages in named) / count,
        f"recall@{FEW}": sum(recall_at(FEW, ranking, pages) for ranking, pages in named) / count,
        f"ndcg@{FEW}": sum(ndcg(ranking, pages, FEW) for ranking, pages in named) / count,
    }

"""The generated dataset `pages`: a folder of made pages, its questions and the expert's trajectories as rows."""

import difflib
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from datasets import Dataset

from hpt_trl.data.objects import with_column
from hpt_trl.data.pages.expert import VOCABULARIES, expert_turns, shown_box
from hpt_trl.data.pages.settings import PageSettings, page_settings
from hpt_trl.data.pages.sheet import SIZE
from hpt_trl.data.pages.writing import Question, read_questions, write_pages
from hpt_trl.errors import UserError
from hpt_trl.files import cache_folder

_SOURCE = "dataset_options of pages"
_OF_PAGES = tuple(field.name for field in fields(PageSettings))
# Beside those of the pages: where they are written, and what the expert does.
_KNOWN = (*_OF_PAGES, "folder", "crops", "misses", "shown_size", "vocabulary")


def pages(options: dict[str, Any], *, seed: int) -> tuple[Dataset, Dataset | None]:
    """Build the rows: prompt, completion, answer, reference_pages, reference_boxes and layout.

    `completion` holds the assistant's turns alone (see `expert_turns`); a box in it is in pixels of the shown image,
    one in `reference_boxes` in pixels of the page.

    Args:
        options: fields of `PageSettings`; `folder`, where the pages are written (by default a folder of the cache that
            the settings name); `crops`, whether the expert cuts out what answers (by default it does); `misses`, the
            share of experts whose first search is for another page (0); `shown_size`, width and height at which an
            environment shows the pages, where that is not their own; `vocabulary`, `tags` or `tools`.
        seed: draws nothing: an index is made of the pages, which stay the same in every run; `seed` in the options
            draws others.

    Returns:
        The training rows and the held-out rows (None for `test_size: 0`), of pages in one folder.

    Raises:
        UserError: an option that is unknown or out of range, or a folder that cannot be used.
    """
    for key in options:
        if key not in _KNOWN:
            near = difflib.get_close_matches(key, _KNOWN, n=1)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise UserError(f"{_SOURCE}: unknown option `{key}`; {hint}Known: {', '.join(_KNOWN)}.")
    settings = page_settings({key: options[key] for key in _OF_PAGES if key in options}, _SOURCE)
    expert = _expert_options(options)
    folder = options.get("folder")
    if folder is not None and (not isinstance(folder, str) or not folder.strip()):
        raise UserError(f"{_SOURCE}: `folder: {folder}` must be the path of a folder.")
    folder = write_pages(folder or cache_folder() / "pages" / settings.digest(), settings)
    questions = read_questions(folder)
    train, test = (
        _rows([question for question in questions if question["split"] == split], settings.seed, expert)
        for split in ("train", "test")
    )
    return train, test if len(test) else None


@dataclass(frozen=True)
class _Expert:
    """What the expert does."""

    crops: bool
    misses: float
    shown: tuple[int, int]
    vocabulary: str


def _rows(questions: list[Question], seed: int, expert: _Expert) -> Dataset:
    """The rows of one split, whose experts see no page of the other."""
    generator = random.Random(f"{seed} expert")
    rows, turns = [], []
    for number, question in enumerate(questions):
        missed = None
        if len(questions) > 1 and generator.random() < expert.misses:
            missed = questions[(number + generator.randrange(1, len(questions))) % len(questions)]["title"]
        box = shown_box(question["box"], SIZE, expert.shown) if expert.crops else None
        title, answer = question["title"], question["answer"]
        turns.append(expert_turns(title, answer, box=box, missed=missed, vocabulary=expert.vocabulary))
        rows.append(_row(question))
    # Arguments of tool calls stay as they are.
    return with_column(Dataset.from_list(rows), "completion", turns) if rows else Dataset.from_list([])


def _row(question: Question) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": question["query"]}],
        "answer": question["answer"],
        "reference_pages": question["reference_pages"],
        "reference_boxes": [{"page": question["reference_pages"][0], "box": question["box"]}],
        "layout": question["layout"],
    }


def _expert_options(options: dict[str, Any]) -> _Expert:
    crops, misses, shown = options.get("crops", True), options.get("misses", 0.0), options.get("shown_size", SIZE)
    if not isinstance(crops, bool):
        raise UserError(f"{_SOURCE}: `crops: {crops}` must be true or false.")
    if isinstance(misses, bool) or not isinstance(misses, int | float) or not 0 <= misses <= 1:
        raise UserError(f"{_SOURCE}: `misses: {misses}` is a share of the experts; write 0 to 1.")
    sides = shown if isinstance(shown, Sequence) and not isinstance(shown, str) else ()
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise UserError(f"{_SOURCE}: `shown_size: {shown}` must be width and height in pixels, e.g. [320, 240].")
    vocabulary = options.get("vocabulary", "tags")
    if vocabulary not in VOCABULARIES:
        raise UserError(f"{_SOURCE}: `vocabulary: {vocabulary}`; allowed: {', '.join(VOCABULARIES)}.")
    return _Expert(crops, float(misses), (sides[0], sides[1]), vocabulary)

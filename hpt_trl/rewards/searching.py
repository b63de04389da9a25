"""Rewards of episodes in the retrieval environment: the answer, the form of the turns, pages and crops.

They read what the environment says of an episode (`columns.FACTS`) beside columns of the data. The ones that VRAG
(Wang et al. 2025, arXiv 2505.22019) trains with are the answer, the form and NDCG, weighted 0.7, 0.1 and 0.2.
"""

from collections.abc import Sequence
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.retrieval.measures import ndcg, recall_at
from hpt_trl.rewards.answer_texts import accepted, same_answer, similarity
from hpt_trl.rewards.boxes import boxes_of, overlap
from hpt_trl.rewards.columns import required, required_fact
from hpt_trl.rewards.turn_forms import well_formed


def answer_match(
    completions: Sequence[Any],
    answer: Sequence[Any] | None = None,
    final_answer: Sequence[str | None] | None = None,
    **_: Any,
) -> list[float | None]:
    """How near the episode's answer is to column `answer` (a text, or a list of accepted ones), from 0 to 1.

    1.0 for the same answer, else ANLS (`hpt_trl.rewards.answer_texts.similarity`); numbers are right or wrong. 0.0 for
    an episode without an answer; None where the row has none.

    Raises:
        UserError: the data has no column `answer`, or the completions are no episodes.
    """
    rows = _answers("answer_match", answer, final_answer)
    return [(similarity(references, given or "") if references else None) for references, given in rows]


def answer_exact(
    completions: Sequence[Any],
    answer: Sequence[Any] | None = None,
    final_answer: Sequence[str | None] | None = None,
    **_: Any,
) -> list[float | None]:
    """1.0 where the episode's answer is one of column `answer` once normalised, else 0.0; None where there is none.

    Raises:
        UserError: the data has no column `answer`, or the completions are no episodes.
    """
    rows = _answers("answer_exact", answer, final_answer)
    return [
        float(any(same_answer(reference, given or "") for reference in references)) if references else None
        for references, given in rows
    ]


def action_format(
    completions: Sequence[Any], invalid_actions: Sequence[int] | None = None, **_: Any
) -> list[float | None]:
    """1.0 where every turn is one thought and one action, and the environment could act on all of them; else 0.0.

    Raises:
        UserError: the completions are no episodes.
    """
    invalid = required_fact("action_format", "invalid_actions", invalid_actions)
    return [
        float(count == 0 and well_formed(completion)) for completion, count in zip(completions, invalid, strict=True)
    ]


def page_ndcg(
    completions: Sequence[Any],
    reference_pages: Sequence[Sequence[str] | None] | None = None,
    retrieved_pages: Sequence[Sequence[str]] | None = None,
    **_: Any,
) -> list[float | None]:
    """NDCG of the pages in the order in which they were shown; None where the row has no reference pages.

    Raises:
        UserError: the data has no column `reference_pages`, or the completions are no episodes.
    """
    rows = _pages("page_ndcg", reference_pages, retrieved_pages)
    return [ndcg(shown, wanted) if wanted else None for shown, wanted in rows]


def page_recall(
    completions: Sequence[Any],
    reference_pages: Sequence[Sequence[str] | None] | None = None,
    retrieved_pages: Sequence[Sequence[str]] | None = None,
    **_: Any,
) -> list[float | None]:
    """Share of the reference pages that were shown; None where the row has no reference pages.

    Raises:
        UserError: the data has no column `reference_pages`, or the completions are no episodes.
    """
    rows = _pages("page_recall", reference_pages, retrieved_pages)
    return [recall_at(max(len(shown), 1), shown, wanted) if wanted else None for shown, wanted in rows]


def crop_overlap(
    completions: Sequence[Any],
    reference_boxes: Sequence[Sequence[dict[str, Any]] | None] | None = None,
    crops: Sequence[Sequence[dict[str, Any]]] | None = None,
    _row: Sequence[int] | None = None,
    **_: Any,
) -> list[float | None]:
    """The best intersection over union of a crop with each reference box of its page, averaged over the boxes.

    None where the row has no boxes.

    Raises:
        UserError: the data has no column `reference_boxes` or a box that is none, or the completions are no episodes.
    """
    wanted = required("crop_overlap", "reference_boxes", reference_boxes)
    made = required_fact("crop_overlap", "crops", crops)
    values: list[float | None] = []
    for place, (boxes, cuts) in enumerate(zip(wanted, made, strict=True)):
        try:
            found = boxes_of(boxes)
        except UserError as error:
            where = f"row {_row[place]}" if _row is not None else f"position {place + 1} of the batch"
            raise UserError(f"{where}: {error}") from error
        best = [
            max((overlap(cut["box"], box) for cut in cuts if cut["page"] == page), default=0.0) for page, box in found
        ]
        values.append(sum(best) / len(best) if best else None)
    return values


def _answers(
    reward: str, answer: Sequence[Any] | None, final_answer: Sequence[str | None] | None
) -> list[tuple[list[str], str | None]]:
    references = [accepted(reference) for reference in required(reward, "answer", answer)]
    return list(zip(references, required_fact(reward, "final_answer", final_answer), strict=True))


def _pages(
    reward: str, reference_pages: Sequence[Sequence[str] | None] | None, retrieved_pages: Sequence[Sequence[str]] | None
) -> list[tuple[list[str], list[str]]]:
    wanted = required(reward, "reference_pages", reference_pages)
    shown = required_fact(reward, "retrieved_pages", retrieved_pages)
    return [(list(pages), list(references or [])) for pages, references in zip(shown, wanted, strict=True)]

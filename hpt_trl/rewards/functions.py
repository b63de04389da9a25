"""The bundled rewards, and the columns that they read.

A reward has TRL's signature: `reward(prompts, completions, completion_ids, **columns) -> list[float | None]`, where a
completion is a string or a list of messages and None means that the reward does not apply to the row.
"""

from collections.abc import Callable, Sequence
from typing import Any

from hpt_trl.data.final_answers import HASHES, final_answer, final_answers
from hpt_trl.data.messages import text_of
from hpt_trl.rewards.code.rewards import CodeReward
from hpt_trl.rewards.columns import required
from hpt_trl.rewards.judge.reward import JudgedAnswer
from hpt_trl.rewards.mathcheck import equal_pairs
from hpt_trl.rewards.searching import (
    action_format,
    answer_exact,
    answer_match,
    crop_overlap,
    page_ndcg,
    page_recall,
)

Reward = Callable[..., Any]


def math_answer(completions: Sequence[Any], answer: Sequence[Any] | None = None, **_: Any) -> list[float | None]:
    r"""1.0 where the last `\boxed{...}` or `#### ...` of the completion equals column `answer`, else 0.0.

    What is equal is written in docs/answers.md. None where the row has no answer.

    Raises:
        UserError: the data has no column `answer`.
    """
    golds = required("math_answer", "answer", answer)
    given = [final_answer(text_of(completion)) for completion in completions]
    rows = list(zip(golds, given, strict=True))
    pairs = [(str(gold), found) for gold, found in rows if gold is not None and found is not None]
    equal = iter(equal_pairs(pairs))
    return [None if gold is None else float(found is not None and next(equal)) for gold, found in rows]


def exact_match(completions: Sequence[Any], answer: Sequence[Any] | None = None, **_: Any) -> list[float | None]:
    """1.0 where the whole completion, without the space around it, is column `answer`; None where there is none.

    Raises:
        UserError: the data has no column `answer`.
    """
    golds = required("exact_match", "answer", answer)
    return [
        None if gold is None else float(text_of(completion).strip() == str(gold).strip())
        for completion, gold in zip(completions, golds, strict=True)
    ]


def boxed_format(completions: Sequence[Any], **_: Any) -> list[float]:
    r"""1.0 where the completion gives exactly one final answer, as `\boxed{...}` or as a line `#### ...`."""
    return [float(len(final_answers(text_of(completion))) == 1) for completion in completions]


def reasoning_gym(completions: Sequence[Any], metadata: Sequence[str] | None = None, **_: Any) -> list[float]:
    r"""The score that the reasoning-gym task itself gives, from 0 to 1.

    Scored is the text after the last line start `####`, or in the last `\boxed{...}`, or else the whole completion.

    Raises:
        UserError: the data has no column `metadata`, as datasets `reasoning_gym:<task>` have it.
    """
    from hpt_trl.data.tasks import score_reasoning_gym

    rows = required("reasoning_gym", "metadata", metadata)
    scorers: dict[str, Any] = {}
    return [
        score_reasoning_gym(_free_answer(text_of(completion)), row, scorers)
        for completion, row in zip(completions, rows, strict=True)
    ]


def story_score(
    completions: Sequence[Any], hero: Sequence[str] | None = None, thing: Sequence[str] | None = None, **_: Any
) -> list[float]:
    """The true reward of a story of `stories:<part>`, from 0 to 1 (see `hpt_trl.data.stories.score_story`).

    Raises:
        UserError: the data has no columns `hero` and `thing`.
    """
    from hpt_trl.data.stories import score_story

    heroes, things = required("story_score", "hero", hero), required("story_score", "thing", thing)
    return [
        score_story(text_of(completion), *pair) for completion, *pair in zip(completions, heroes, things, strict=True)
    ]


REWARDS: dict[str, Reward] = {
    "math_answer": math_answer,
    "exact_match": exact_match,
    "boxed_format": boxed_format,
    "reasoning_gym": reasoning_gym,
    "story_score": story_score,
    "code_tests": CodeReward("code_tests", whole=False),
    "all_code_tests": CodeReward("all_code_tests", whole=True),
    "answer_match": answer_match,
    "answer_exact": answer_exact,
    "judged_answer": JudgedAnswer(),
    "action_format": action_format,
    "page_ndcg": page_ndcg,
    "page_recall": page_recall,
    "crop_overlap": crop_overlap,
}
# The rewards of code say by themselves which columns they take tests from.
REQUIRED_COLUMNS = {
    "math_answer": "answer",
    "exact_match": "answer",
    "reasoning_gym": "metadata",
    "story_score": "hero",
    "answer_match": "answer",
    "answer_exact": "answer",
    "judged_answer": "answer",
    "page_ndcg": "reference_pages",
    "page_recall": "reference_pages",
    "crop_overlap": "reference_boxes",
}


def _free_answer(text: str) -> str:
    marks = list(HASHES.finditer(text))
    if marks:
        # Answers of puzzles have many lines.
        return text[marks[-1].start(1) :].strip()
    answer = final_answer(text)
    return text.strip() if answer is None else answer

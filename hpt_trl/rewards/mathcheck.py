"""Whether mathematical answers are equal, decided without ever hanging the training run (docs/answers.md).

Plain answers are compared here. Expressions go to child processes with limits on time and memory, for a model under
training writes answers such as `7^{10^{10}}`, which nothing can interrupt.
"""

from collections.abc import Sequence
from typing import Any

from hpt_trl.rewards.answers.comparing import compare
from hpt_trl.rewards.answers.hostile import MAX_LENGTH
from hpt_trl.rewards.answers.pool import shared_pool
from hpt_trl.rewards.answers.reading import read_answer

_CACHED = 50_000
_verdicts: dict[tuple[str, str], bool] = {}


def equal_answers(gold: str, answer: str) -> bool:
    """Return whether `answer` equals `gold`; see `equal_pairs`."""
    return equal_pairs([(gold, answer)])[0]


def equal_pairs(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Return for each pair of gold and answer whether the two are equal.

    An answer that is longer than 400 characters, too large to be evaluated, or not decided within the limits of time
    and memory, equals only its own text.
    """
    questions = {pair: _verdicts[pair] if pair in _verdicts else _question(*pair) for pair in dict.fromkeys(pairs)}
    verdicts: dict[tuple[str, str], bool | None] = {
        pair: question for pair, question in questions.items() if isinstance(question, bool)
    }
    asked = [pair for pair in questions if pair not in verdicts]
    if asked:
        verdicts.update(zip(asked, shared_pool().decide([questions[pair] for pair in asked]), strict=True))
        if len(_verdicts) > _CACHED:
            _verdicts.clear()
        # What was given up may be decided on another day.
        _verdicts.update((pair, verdict) for pair in asked if (verdict := verdicts[pair]) is not None)
    return [bool(verdicts[pair]) for pair in pairs]


def needs_sympy(gold: str, answer: str) -> bool:
    """Return whether the comparison goes to a child process."""
    return not isinstance(_question(gold, answer), bool)


def _question(gold: str, answer: str) -> Any:
    if gold.strip() == answer.strip():
        return bool(gold.strip())
    if max(len(gold), len(answer)) > MAX_LENGTH:
        return False
    return compare(read_answer(gold), read_answer(answer))

"""What is measured of several completions per row: pure functions of which of them are solved.

Sources: pass@k, Chen et al. 2021, arXiv 2107.03374, eq. 1; maj@k, Wang et al. 2022, arXiv 2203.11171.
"""

import math
import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations

from hpt_trl.data.final_answers import final_answer
from hpt_trl.rewards.mathcheck import equal_pairs

# Draws of k among n completions over which a majority is averaged where there are more such choices than that.
_DRAWS = 1000


def pass_at_k(n: int, solved: int, k: int) -> float:
    """The probability that k of a row's n completions, drawn without replacement, hold a solved one.

    It is the unbiased estimate of the probability that one of k fresh completions is solved.

    Args:
        n: Completions of the row.
        solved: How many of them are solved.
        k: At most n.

    Raises:
        ValueError: k is larger than n, of which no estimate is unbiased.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} completions: k must be from 1 to {n}.")
    if n - solved < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - solved + 1, n + 1))


def vote_groups(completions: Sequence[str]) -> list[int | None]:
    """For each completion the number of its answer, the same for equal answers; None without one.

    What is equal is written in docs/answers.md. Answers are the last `\\boxed{...}` or `#### ...`.
    """
    answers = [final_answer(text) for text in completions]
    distinct = list(dict.fromkeys(answer for answer in answers if answer is not None))
    pairs = list(combinations(distinct, 2))
    group = {answer: number for number, answer in enumerate(distinct)}
    for (one, other), equal in zip(pairs, equal_pairs(pairs), strict=True):
        if equal and group[one] != group[other]:
            kept, gone = sorted((group[one], group[other]))
            group = {answer: kept if number == gone else number for answer, number in group.items()}
    return [None if answer is None else group[answer] for answer in answers]


def majority_at_k(groups: Sequence[int | None], solved: Sequence[bool], k: int, *, seed: int = 0) -> float:
    """How often the most frequent answer of k of a row's completions is solved.

    Averaged over all choices of k completions, or over 1,000 drawn ones where there are more. Of answers that are
    equally frequent each has the same share; completions without an answer have no vote.

    Args:
        groups: From `vote_groups`.
        solved: Of the same completions.
        k: At most their number.
        seed: Of the draws.

    Raises:
        ValueError: k is larger than the number of completions.
    """
    n = len(groups)
    if not 1 <= k <= n:
        raise ValueError(f"maj@{k} of {n} completions: k must be from 1 to {n}.")
    if math.comb(n, k) <= _DRAWS:
        choices: Sequence[Sequence[int]] = list(combinations(range(n), k))
    else:
        draw = random.Random(seed)
        choices = [draw.sample(range(n), k) for _ in range(_DRAWS)]
    return float(sum(_majority(choice, groups, solved) for choice in choices) / len(choices))


def _majority(choice: Sequence[int], groups: Sequence[int | None], solved: Sequence[bool]) -> Fraction:
    votes: dict[int, list[bool]] = {}
    for place in choice:
        if (group := groups[place]) is not None:
            votes.setdefault(group, []).append(solved[place])
    if not votes:
        return Fraction(0)
    most = max(map(len, votes.values()))
    leading = [cast for cast in votes.values() if len(cast) == most]
    # Equal answers are solved alike, unless the reward looks at more than the answer.
    return sum((Fraction(sum(cast), len(cast)) for cast in leading), Fraction(0)) / len(leading)

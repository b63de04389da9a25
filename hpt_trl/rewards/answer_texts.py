"""Short answers compared as texts: what is the same, and how near two are that are not (ANLS).

The average normalised Levenshtein similarity is of Biten et al., Scene Text Visual Question Answering (2019): 1 minus
the edit distance over the longer length, and 0 from a distance of one half on. It forgives a slip of spelling. A wrong
number is no slip, so here a reference with numbers in it earns nothing by an answer with others.
"""

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from hpt_trl.rewards.answers.numbers import read_number

# From this normalised distance on an answer has nothing to do with the reference (the threshold of the paper).
FAR = 0.5

_ARTICLE = re.compile(r"(?:the|an|a) (?=\S)")
_BEFORE, _AFTER = " '\"`“”\u2018\u2019*", " .,;:!?'\"`“”\u2018\u2019*"
_SIGNS = "$€£¥₹"
_DIGITS = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


def accepted(reference: Any) -> list[str]:
    """Returns the accepted answers of a row: a text or a number, or a list of them; none for None."""
    if reference is None:
        return []
    many = reference if isinstance(reference, list | tuple) else [reference]
    return [str(one) for one in many if one is not None]


def normalised(text: str) -> str:
    """Returns a text in lower case, one space between words, without marks around it and a first article."""
    spaced = " ".join(unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-").split())
    # What is nothing but marks stays.
    plain = spaced.lstrip(_BEFORE).rstrip(_AFTER) or spaced
    return _ARTICLE.sub("", plain, count=1) if _ARTICLE.match(plain) else plain


def same_answer(reference: str, answer: str) -> bool:
    """Whether two texts are the same once normalised, or both plain numbers of the same value.

    `1,234` is `1234.0`. A sign of money or per cent that one of them lacks is not held against it: `12%` is `12` and,
    by its value, `0.12`; `$5` is `5`, and not `€5`.
    """
    one, two = normalised(reference), normalised(answer)
    if one == two:
        return bool(one)
    first, second = _number(one), _number(two)
    if first is None or second is None or (first[1] and second[1] and first[1] != second[1]):
        return False
    if first[1] == second[1]:
        return first[0] == second[0]
    return any(one == two for one in _values(*first) for two in _values(*second))


def similarity(references: Sequence[str], answer: str) -> float:
    """Returns the best similarity of an answer to the accepted ones, from 0 to 1.

    1 for the same answer. A reference that is a plain number gives nothing else, and one that holds numbers gives
    nothing to an answer with other numbers; the rest is ANLS.
    """
    return max((_similarity(reference, answer) for reference in references), default=0.0)


def _similarity(reference: str, answer: str) -> float:
    if same_answer(reference, answer):
        return 1.0
    one, two = normalised(reference), normalised(answer)
    if not one or not two or _number(one) is not None or (_numbers_in(one) and _numbers_in(one) != _numbers_in(two)):
        return 0.0
    from rapidfuzz.distance import Levenshtein

    distance = Levenshtein.normalized_distance(one, two)
    return 1 - distance if distance < FAR else 0.0


def _numbers_in(text: str) -> list[Fraction]:
    return [Fraction(digits.replace(",", "")) for digits in _DIGITS.findall(text)]


def _number(text: str) -> tuple[Fraction, str] | None:
    """A plain number and its sign of money or per cent, `` for none; None where the text is something else."""
    sign = "%" if text.endswith("%") else next((sign for sign in _SIGNS if sign in text[:2] + text[-1:]), "")
    number = read_number((text.replace(sign, "", 1) if sign else text).strip())
    return None if number is None else (number.value, sign)


def _values(number: Fraction, sign: str) -> list[Fraction]:
    return [number, number / 100] if sign == "%" else [number]

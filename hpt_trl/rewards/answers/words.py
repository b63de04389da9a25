r"""Answers in words: `yes`, `\text{Paris}`, `(A)`, `\text{(B) } 5`, `twenty-one`."""

import re
from dataclasses import dataclass
from fractions import Fraction

from hpt_trl.rewards.answers.numbers import Number

_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer) )?(?:\((?P<closed>[A-Ja-j])\)|(?P<open>[A-J])(?P<end>[).:]?))(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SAME = {
    "does not exist": "dne",
    "doesn't exist": "dne",
    "no real solutions": "no real solution",
    "infinitely many solutions": "infinitely many",
    "t": "t",
}


@dataclass(frozen=True)
class Words:
    """Words in lower case. `bare` where they stand outside of a text command, so that letters may be variables."""

    text: str
    bare: bool
    latex: str


@dataclass(frozen=True)
class Choice:
    """The letter of a choice in upper case, and what is said to stand there (may be empty)."""

    letter: str
    rest: str
    latex: str


def unworded(text: str) -> str:
    r"""The text without its `\text` commands."""
    return re.sub(r"\s+", " ", _TEXT.sub(r" \1 ", text)).strip()


def read_choice(text: str) -> Choice | None:
    """Read `A`, `(A)`, `A.` or `(A) 5`; None for other texts."""
    plain = unworded(text)
    found = _CHOICE.fullmatch(plain)
    if not found:
        return None
    rest = found["rest"].strip()
    letter = found["closed"] or found["open"]
    if found["open"] and (letter.islower() or (rest and found["end"] not in (")", ".", ":"))):
        return None
    if found["closed"] and rest and (letter.islower() or rest[0] in "^_!/+-=(<>"):
        # `(a)^2` is an expression.
        return None
    return Choice(letter.upper(), rest.lstrip(".:-) ").strip(), plain)


def read_number_word(text: str) -> Number | None:
    """Read `seven` or `twenty-one`; None for other texts."""
    words = re.split(r"[ -]", unworded(text).lower())
    if len(words) == 1 and words[0] in _ONES:
        return Number(Fraction(_ONES.index(words[0])), 0)
    if words[0] in _TENS and (len(words) == 1 or (len(words) == 2 and words[1] in _ONES[1:10])):
        ones = _ONES.index(words[1]) if len(words) == 2 else 0
        return Number(Fraction((_TENS.index(words[0]) + 2) * 10 + ones), 0)
    return None


def read_words(text: str) -> Words | None:
    r"""Read a text of letters; None for single letters, products of `u` to `z`, and what holds more than letters."""
    plain = unworded(text)
    bare = _TEXT.search(text) is None
    if not re.fullmatch(r"[^\W\d_][^\\^_={}<>+*/|]*", plain) or (bare and re.search(r"\d|[()]", plain)):
        return None
    if bare and (re.fullmatch(r"[u-z]{1,3}|(?:[a-zA-Z] )*[a-zA-Z]'*", plain)):
        return None
    lower = re.sub(r"[\s-]+", " ", plain.lower()).strip(" .,;:!?'\"")
    lower = re.sub(r"^(?:the|an|a) (?=\w{3})", "", lower)
    return Words(_SAME.get(lower, lower), bare, plain)

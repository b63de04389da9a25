r"""Answers that nobody can evaluate, told by their text: power towers, factorials and sums of huge numbers.

The size of every part is bounded from above by its decimal logarithm, as if all of its numbers were multiplied.
"""

import math
import re

# Longer texts are rambling, not answers, and costly to parse.
MAX_LENGTH = 400
_MAX_DEPTH = 12
_MAX_EXPONENT = 5.0
_MAX_DIGITS = 20_000.0
_MAX_FACTORIAL = 3.5
_MAX_BINOMIAL = 4.0
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|\d+(?:\.\d+)?|\S", re.DOTALL | re.ASCII)
_EXPONENTIAL = re.compile(r"\d[eE][-+]?\d{5}")
_OPENING = {"{": "}", "(": ")", "[": "]"}
_CLOSING = set(_OPENING.values())
_TWO_PARTS = {r"\frac": 2, r"\binom": 2}
_FACTORIALS = {r"\Gamma", r"\gamma"}


class _Hostile(Exception):
    pass


def is_hostile(text: str) -> bool:
    """Return whether the normalised LaTeX `text` is too long, too deep or too large to be evaluated."""
    if len(text) > MAX_LENGTH or _EXPONENTIAL.search(text):
        return True
    depth = 0
    for mark in text:
        depth += (mark in "{([") - (mark in "})]")
        if depth > _MAX_DEPTH:
            return True
    tokens = _TOKEN.findall(text)
    try:
        place = 0
        while place < len(tokens):
            # A closing bracket without an opening one ends a part, not the text.
            _, place = _size(tokens, place)
            place += 1
    except _Hostile:
        return True
    return False


def _size(tokens: list[str], place: int) -> tuple[float, int]:
    """Return the log10 of the bound of the part that begins at `place`, and the place of what closes it."""
    total, last = 0.0, 0.0
    while place < len(tokens) and tokens[place] not in _CLOSING:
        token = tokens[place]
        if token == "^":
            exponent, place = _atom(tokens, place + 1)
            while place < len(tokens) and tokens[place] == "^":
                higher, place = _atom(tokens, place + 1)
                if higher > _MAX_EXPONENT:
                    raise _Hostile
                exponent *= 10**higher
            if exponent > _MAX_EXPONENT or last * 10**exponent > _MAX_DIGITS:
                raise _Hostile
            total += last * 10**exponent - last
            last *= 10**exponent
            continue
        if token == "!":
            if last > _MAX_FACTORIAL:
                raise _Hostile
            grown = 10**last * max(last, 1)
            total, last, place = total + grown - last, grown, place + 1
            continue
        if token == "_" and last > _MAX_FACTORIAL and place and tokens[place - 1] == ")":
            # math-verify reads `(n)_{k}` as a number of permutations.
            raise _Hostile
        last, place = _atom(tokens, place)
        total += last
    return total, place


def _atom(tokens: list[str], place: int) -> tuple[float, int]:
    """Return the log10 of the bound of the one thing at `place`, and the place after it."""
    while place < len(tokens) and tokens[place] in "+-":
        place += 1
    if place >= len(tokens):
        return 0.0, place
    token = tokens[place]
    if token in _OPENING:
        size, end = _size(tokens, place + 1)
        return size, end + 1
    if token[0] in "0123456789":
        return _digits(token), place + 1
    if token in _TWO_PARTS:
        sizes = []
        place += 1
        for _ in range(_TWO_PARTS[token]):
            size, place = _atom(tokens, place)
            sizes.append(size)
        if token == r"\binom" and max(sizes) > _MAX_BINOMIAL:
            raise _Hostile
        return (10 ** sizes[0] * 0.31 if token == r"\binom" else sum(sizes)), place
    if token in _FACTORIALS:
        size, place = _atom(tokens, place + 1)
        if size > _MAX_FACTORIAL:
            raise _Hostile
        return 10**size * max(size, 1), place
    return 0.0, place + 1


def _digits(token: str) -> float:
    whole, _, part = token.partition(".")
    number = whole.lstrip("0")
    if not number:
        return 0.0
    return len(number) - 1 + math.log10(float(number[:15]) / 10 ** (len(number[:15]) - 1) + (1e-9 if part else 0.0))

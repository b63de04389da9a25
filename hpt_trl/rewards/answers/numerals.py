"""Numerals in a named base, and ordinals."""

import re

from hpt_trl.rewards.answers.forms import Numeral
from hpt_trl.rewards.answers.numbers import Number, read_number
from hpt_trl.rewards.answers.words import unworded

_BASES = dict(
    zip(
        ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "sixteen"],
        (*range(2, 11), 16),
        strict=True,
    )
)
_NUMERAL = re.compile(
    r"(?:\( ?(?P<in>[0-9A-F]+) ?\)|(?P<out>[0-9A-F]+)) ?_ ?\{? ?(?:\\text\{ ?|\( ?|base ?)?"
    rf"(?P<base>\d{{1,2}}|{'|'.join(_BASES)}) ?\)?(?: ?\}}){{0,2}}"
)
_BASE_WORDS = re.compile(rf"(?P<digits>[0-9A-F]+) (?:in )?\(?base[ -](?P<base>\d{{1,2}}|{'|'.join(_BASES)})\)?")
_NTH = re.compile(r"(\d+) ?(?:\^ ?\{? ?)?(?:\\text\{ ?(?:st|nd|rd|th) ?\}|(?:st|nd|rd|th))\}?")


def read_numeral(text: str) -> Numeral | Number | None:
    """Read `1001_2`, `(1001)_{two}` or `1001 (base 2)`; a number where the base is ten, None for other texts."""
    plain = unworded(text)
    if found := _NUMERAL.fullmatch(plain):
        digits, name = found["in"] or found["out"], found["base"]
    elif found := _BASE_WORDS.fullmatch(plain):
        digits, name = found["digits"], found["base"]
    else:
        return None
    base = _BASES[name] if name in _BASES else int(name)
    if not digits.isdecimal() and any(int(digit, 16) >= base for digit in digits):
        # `A_1` is a name.
        return None
    if base == 10 and digits.isdigit():
        return read_number(digits)
    return Numeral(digits.lstrip("0") or "0", base)


def read_ordinal(text: str) -> Number | None:
    r"""Read `5th` or `5^{\text{th}}` as a number; None for other texts."""
    found = _NTH.fullmatch(text)
    return read_number(found[1]) if found else None

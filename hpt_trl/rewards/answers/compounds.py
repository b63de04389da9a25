"""Quantities in several units of one kind: `5 ft 11 in`, `2 hours and 15 minutes`."""

import re
from fractions import Fraction

from hpt_trl.rewards.answers.forms import Quantity
from hpt_trl.rewards.answers.numbers import Number
from hpt_trl.rewards.answers.units import Unit, is_known_unit, read_unit

_PART = re.compile(
    r"(?P<amount>\d{1,15}(?:\.\d{1,15})?) ?(?:\\text\{ ?(?P<text>[a-zA-Z]+)\.? ?\}|(?P<bare>[a-zA-Z]+)\.?) ?"
    r"(?:(?:and|\\text\{ ?and ?\}) ?)?",
    re.ASCII,
)


def read_compound(text: str) -> Quantity | None:
    """Read a quantity of two parts or more, each of a smaller unit than the one before, in the last unit."""
    parts: list[tuple[Fraction, Unit]] = []
    place = 0
    while place < len(text):
        found = _PART.match(text, place)
        unit = _unit(found["text"] or found["bare"]) if found else None
        if found is None or unit is None:
            return None
        amount = Fraction(found["amount"])
        # `3 ft 40 in` is no way to write a length.
        if parts and (parts[0][1].dimensions != unit.dimensions or amount * unit.factor >= parts[-1][1].factor):
            return None
        parts.append((amount, unit))
        place = found.end()
    if len(parts) < 2:
        return None
    last = parts[-1][1]
    return Quantity(Number(sum((amount * unit.factor for amount, unit in parts), Fraction(0)) / last.factor), last)


def _unit(word: str) -> Unit | None:
    unit = read_unit(word) if is_known_unit(word) else None
    return unit if unit and unit.dimensions else None

"""Dates, times of day and ratios, which are no sums, quotients or decimals: `2024-01-05`, `3:45 pm`, `3:4`."""

import re
from dataclasses import dataclass
from fractions import Fraction

from hpt_trl.rewards.answers.numbers import read_number

_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_MONTH = "|".join(f"{name[:3]}(?:{name[3:]})?" if len(name) > 3 else name for name in _MONTHS) + "|sept"
_NTH = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_DATES = (
    re.compile(rf"(?P<month>{_MONTH})\.? {_NTH}(?:,? (?P<year>\d{{4}}))?"),
    re.compile(rf"{_NTH}(?: of)? (?P<month>{_MONTH})\.?(?:,? (?P<year>\d{{4}}))?"),
    re.compile(r"(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})"),
)
# Which of the first two is the month, nobody can know.
_SLASHED = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4}|\d{2})")
_WEEKDAY = re.compile(r"^(?:mon|tues|wednes|thurs|fri|satur|sun)day,? ")
_TIME = re.compile(r"(?P<hour>\d{1,2})(?::(?P<minute>\d{2})(?::(?P<second>\d{2}))?)? ?(?P<half>[ap]\.? ?m\.?)?")
_RATIO = re.compile(r"[^:]+(?::[^:]+)+| ?[\d.]+ to [\d.]+ ?")


@dataclass(frozen=True)
class Date:
    """Year (None: not said), month and day; a date of slashes keeps its three numbers as they stand."""

    year: int | None
    month: int
    day: int
    slashed: bool = False


@dataclass(frozen=True)
class Time:
    """Hours, minutes, seconds; `half` is `am`, `pm` or None where it is not said."""

    hour: int
    minute: int
    second: int
    half: str | None

    def equals(self, other: "Time") -> bool:
        if self.half is None or other.half is None:
            shown = self.hour, self.minute, self.second
            return shown == (other.hour, other.minute, other.second) or self._seconds() == other._seconds()
        return self._seconds() == other._seconds()

    def _seconds(self) -> int:
        hour = self.hour if self.half is None else self.hour % 12 + (12 if self.half == "pm" else 0)
        return hour * 3600 + self.minute * 60 + self.second


@dataclass(frozen=True)
class Ratio:
    """Numbers in proportion: `6:8` is `3:4`."""

    parts: tuple[Fraction, ...]

    def equals(self, other: "Ratio") -> bool:
        if len(self.parts) != len(other.parts):
            return False
        first, second = sum(map(abs, self.parts)), sum(map(abs, other.parts))
        return all(one * second == two * first for one, two in zip(self.parts, other.parts, strict=True))


def read_moment(text: str) -> Date | Time | Ratio | None:
    """Read a normalised text as a date, a time of day or a ratio; None where it is none of them."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    plain = re.sub(r" *: *", ":", re.sub(r"\s+", " ", plain)).strip().lower()
    return _date(_WEEKDAY.sub("", plain)) or _time(plain) or _ratio(plain)


def _date(text: str) -> Date | None:
    for pattern in _DATES:
        if found := pattern.fullmatch(text):
            month = found["month"]
            number = int(month) if month.isdigit() else [name[:3] for name in _MONTHS].index(month[:3]) + 1
            day = int(found["day"])
            if 1 <= number <= 12 and 1 <= day <= 31:
                return Date(int(found["year"]) if found["year"] else None, number, day)
            return None
    if (found := _SLASHED.fullmatch(text)) and all(1 <= int(found[part]) <= 31 for part in (1, 3)):
        # `1/2/3` and `5-3-10` are arithmetic.
        return Date(int(found[4]), int(found[1]), int(found[3]), slashed=True) if len(found[4]) == 4 else None
    return None


def _time(text: str) -> Time | None:
    found = _TIME.fullmatch(text)
    if not found or not (found["half"] or found["minute"]):
        return None
    hour, minute, second = (int(found[part] or 0) for part in ("hour", "minute", "second"))
    if hour > 24 or minute > 59 or second > 59:
        return None
    half = re.sub(r"[. ]", "", found["half"]) if found["half"] else None
    return Time(hour, minute, second, half)


def _ratio(text: str) -> Ratio | None:
    if not _RATIO.fullmatch(text):
        return None
    numbers = [read_number(part.strip()) for part in re.split(r":| to ", text)]
    if any(number is None for number in numbers) or not any(number.value for number in numbers if number):
        return None
    return Ratio(tuple(number.value for number in numbers if number))

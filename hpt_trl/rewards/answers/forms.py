r"""The form of an answer: a number, a quantity, an interval, a set, a matrix, words, … or an expression for sympy.

`read` never fails: what has no other form is an `Expression`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Union

from hpt_trl.rewards.answers.moments import Date, Ratio, Time, read_moment
from hpt_trl.rewards.answers.normalising import normalise, tight
from hpt_trl.rewards.answers.numbers import Number, read_number
from hpt_trl.rewards.answers.splitting import bracketed, closing, split
from hpt_trl.rewards.answers.units import Unit, is_known_unit, read_unit
from hpt_trl.rewards.answers.words import Choice, Words, read_choice, read_number_word, read_words

# Deeper nesting is no answer.
_MAX_DEPTH = 6


@dataclass(frozen=True)
class Expression:
    """LaTeX that sympy has to read. `raw` is the answer as it was given, where it is the whole of one."""

    latex: str
    raw: str | None = None


@dataclass(frozen=True)
class Quantity:
    """An amount and its unit."""

    amount: "Form"
    unit: Unit


@dataclass(frozen=True)
class Numeral:
    """Digits in a named base other than ten: `1001_2`."""

    digits: str
    base: int


@dataclass(frozen=True)
class Span:
    """One interval; the ends may be infinite."""

    low: "Form"
    high: "Form"
    low_closed: bool
    high_closed: bool


@dataclass(frozen=True)
class Intervals:
    r"""A union of intervals, of `variable` where it is named, as in `0\le x\le 1`."""

    variable: str | None
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Items:
    """Several answers: in braces, parentheses, square brackets, or only separated by commas, `and`, `or`."""

    kind: Literal["set", "tuple", "brackets", "list"]
    items: tuple["Form", ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of cells; `bars` for a determinant."""

    rows: tuple[tuple["Form", ...], ...]
    bars: bool


@dataclass(frozen=True)
class Equation:
    """`left = right`; `named` where the left side is only a name: `x`, `f(x)`, `AB`."""

    left: str
    right: "Form"
    named: bool
    latex: str


Form = Union[  # noqa: UP007
    Expression,
    Number,
    Quantity,
    Numeral,
    Intervals,
    Items,
    Matrix,
    Equation,
    Words,
    Choice,
    Date,
    Time,
    Ratio,
]

_NAME = re.compile(
    r"(?:[a-zA-Z]'*|\\(?:alpha|beta|gamma|theta|phi|lambda|mu|rho|sigma|omega|tau|delta|epsilon|Delta|angle|triangle)"
    r"|\\text\{[^{}]*\}|[A-Z]{1,4}|area|volume|perimeter)(?: ?_ ?(?:\w|\{[^{}]*\}))?(?: ?\([a-z](?:, ?[a-z])*\))?"
    r"|\|[A-Z]{1,2}\||(?:m ?)?\\angle ?[A-Z]{1,3}|P ?\([^()]*\)",
)
_NUMERAL = re.compile(
    r"\(? ?([0-9A-Fa-f]+) ?\)? ?_ ?(?:\{ ?(?:\\text\{ ?)?|\\text\{ ?)?(\d{1,2}|two|three|four|five|six|seven|eight|nine|ten|sixteen)"
    r" ?\}{0,2}"
)
_BASES = dict(zip("two three four five six seven eight nine ten sixteen".split(), (*range(2, 11), 16), strict=True))
_RELATION = re.compile(r"(\\leq|\\geq|\\neq|<|>|=)")
_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix|smallmatrix|array|cases|aligned|align\*?|gathered)\}")
_FLIPPED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq", r"\neq": r"\neq"}
_INFINITY, _MINUS_INFINITY = Expression(r"\infty"), Expression(r"-\infty")
_REALS = Span(_MINUS_INFINITY, _INFINITY, False, False)
_ALL = re.compile(r"\\mathbb ?\{? ?R ?\}?|(?:\\text\{)? ?all real(?: number)?s? ?\}?|(?:\\text\{)? ?reals ?\}?")
_WITHOUT = re.compile(r"(\\mathbb ?\{? ?R ?\}?) ?(?:\\setminus|\\ |-|/) ?(\\\{.*\\\})")
_MEMBER = re.compile(r"([a-zA-Z]|\\[a-zA-Z]+) ?\\in(?![a-z]) ?(.+)", re.DOTALL)
_BUILT = re.compile(r"\\\{ ?([a-zA-Z]) ?(?:\\in ?\\mathbb ?\{?R\}?)? ?(?:\||:) ?(.+)\\\}")
_CURRENCY = re.compile(r"(?P<sign>-?) ?(?P<unit>\\\$|[€£¥₹₽₩]) ?(?P<amount>.+)", re.DOTALL)
_BACK_CURRENCY = re.compile(r"(?P<amount>.*[\d}]) ?(?P<unit>\\\$|[€£¥₹₽₩¢])", re.DOTALL)
_TEXT_UNIT = re.compile(
    r"(?P<amount>.*?\S) ?(?P<unit>(?:/ ?)?\\text\{[^{}]*\}(?: ?(?:\^ ?(?:\{ ?-?\d ?\}|\d)|/|\\cdot|\\text\{[^{}]*\}))*)", re.DOTALL
)
_DEGREES = re.compile(r"(?P<amount>.*?\S) ?(?P<unit>\^\\circ ?(?:[CF]|\\text\{ ?(?:[CF]|Celsius|Fahrenheit) ?\})?)", re.DOTALL)
_BARE_UNIT = re.compile(
    r"(?P<amount>.*?[\d)}]|\\pi|.*?\\pi)(?P<space> ?)(?P<unit>[a-zA-Z]+[a-zA-Z.]*(?: ?\^ ?\{?-?\d\}?)?(?:[ /](?:[a-zA-Z]+\.?|/)(?: ?\^ ?\{?-?\d\}?)?)*)",
    re.DOTALL,
)
_NTH = re.compile(r"(\d+) ?(?:\^ ?\{? ?)?(?:\\text\{ ?(?:st|nd|rd|th) ?\}|(?:st|nd|rd|th))\}?")


@lru_cache(maxsize=50_000)
def read_answer(text: str) -> Form:
    """Read an answer as it was given."""
    form = read(normalise(text))
    return replace(form, raw=text.strip()) if isinstance(form, Expression) else form


def read(text: str, depth: int = 0) -> Form:
    """Read a normalised text."""
    text = text.strip()
    if depth > _MAX_DEPTH or not text:
        return Expression(text)
    for reader in (read_number, _numeral, _nth, read_moment, read_choice_of, _matrix_of, _reals, _several, _member):
        form = reader(text, depth) if reader in _DEEP else reader(text)  # type: ignore[operator]
        if form is not None:
            return form
    for deep in (_union, _bracketed, _relation, _plus_minus, _quantity):
        form = deep(text, depth)
        if form is not None:
            return form
    return read_number_word(text) or read_words(text) or Expression(text)

"""The forms that answers have: an expression, a quantity, intervals, several items, a matrix, an equation, …"""

from dataclasses import dataclass
from typing import Literal, Union

from hpt_trl.rewards.answers.moments import Date, Ratio, Time
from hpt_trl.rewards.answers.numbers import Number
from hpt_trl.rewards.answers.units import Unit
from hpt_trl.rewards.answers.words import Choice, Words


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

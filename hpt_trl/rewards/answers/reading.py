r"""From text to form. `read` never fails: what has no other form is an `Expression`."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from hpt_trl.rewards.answers.compounds import read_compound
from hpt_trl.rewards.answers.forms import (
    Equation,
    Expression,
    Form,
    Intervals,
    Items,
    Matrix,
    Quantity,
    Span,
)
from hpt_trl.rewards.answers.moments import read_moment
from hpt_trl.rewards.answers.normalising import normalise
from hpt_trl.rewards.answers.numbers import Number, read_number
from hpt_trl.rewards.answers.numerals import read_numeral, read_ordinal
from hpt_trl.rewards.answers.splitting import bracketed, closing, split
from hpt_trl.rewards.answers.units import is_known_unit, read_unit
from hpt_trl.rewards.answers.words import read_choice, read_number_word, read_words, unworded

# Deeper nesting is no answer.
_MAX_DEPTH = 6
_GREEK = r"\\(?:alpha|beta|gamma|theta|phi|lambda|mu|rho|sigma|omega|tau|delta|epsilon|Delta)"
_NAME = re.compile(
    rf"(?:[a-zA-Z]'*|{_GREEK}|\\text\{{[^{{}}]*\}}|(?:\\triangle ?)?[A-Z]{{1,4}}|area|volume|perimeter)"
    r"(?: ?_ ?(?:\w|\{[^{}]*\}))?(?: ?\([a-z](?:, ?[a-z])*\))?"
    r"|\( ?[a-zA-Z](?: ?, ?[a-zA-Z])+ ?\)|\|[A-Z]{1,2}\||(?:m ?)?\\angle ?[A-Z]{1,3}|P ?\([^()]*\)"
)
_VARIABLE = re.compile(rf"[a-zA-Z]|{_GREEK}")
_RELATION = re.compile(r"\\leq|\\geq|\\neq|<|>|(?<![<>!])=")
_FLIPPED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}
_INFINITY, _MINUS_INFINITY = Expression(r"\infty"), Expression(r"-\infty")
_REALS = Span(_MINUS_INFINITY, _INFINITY, False, False)
_ALL = re.compile(r"\\mathbb ?\{? ?R ?\}?|(?:all )?real(?: number)?s", re.IGNORECASE)
_NONE = re.compile(r"\\emptyset|\\\{ ?\\\}|(?:the )?empty set|(?:there (?:is|are) )?no solutions?", re.IGNORECASE)
_WITHOUT = re.compile(r"\\mathbb ?\{? ?R ?\}? ?(?:\\setminus|-) ?(\\\{.*\\\})", re.DOTALL)
_MEMBER = re.compile(rf"(?P<name>[a-zA-Z]|{_GREEK}) ?\\in(?![a-z]) ?(?P<set>.+)", re.DOTALL)
_BUILT = re.compile(r"(?P<name>[a-zA-Z]) ?(?:\\in ?\\mathbb ?\{? ?R ?\}?)? ?(?:\||:) ?(?P<condition>.+)", re.DOTALL)
_CONNECTOR = re.compile(r"(?:[,;] ?)?(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|;|,")
_LOOSE_CONNECTOR = re.compile(r"(?:[,;] )?(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|;|,(?!\d{3}(?!\d))")
_UNION = re.compile(r"\\cup(?![a-z])")
_MATRIX = re.compile(r"\\begin\{(?P<name>[pbvBV]?matrix|smallmatrix|array|cases|aligned|align\*?|gathered)\}")
_CELL = re.compile(r"(?<!\\)&")
_ROW = re.compile(r"\\\\")
_CURRENCY = re.compile(r"(?P<sign>-?) ?(?P<unit>\\\$|[€£¥₹]) ?(?P<amount>.+)", re.DOTALL)
_BACK_CURRENCY = re.compile(r"(?P<amount>.*[\d}]) ?(?P<unit>\\\$|[€£¥₹¢])", re.DOTALL)
_TEXT_POWER = r"(?: ?\^ ?(?:\{ ?-?\d ?\}|\d))?"
_TEXT_UNIT = re.compile(
    rf"(?P<amount>.*?[^\s/]) ?(?P<unit>(?:/ ?)?\\text\{{[^{{}}]*\}}{_TEXT_POWER}"
    # A space between two units can be matched in one way only: the time would double with each space.
    rf"(?: ?(?:(?:/|\\cdot) ?)?(?:\\text\{{[^{{}}]*\}}|[a-z]){_TEXT_POWER})*+)",
    re.DOTALL,
)
_DEGREES = re.compile(
    r"(?P<amount>.*?\S) ?(?P<unit>\^\\circ ?(?:[CF]|\\text\{ ?(?:[CF]|Celsius|Fahrenheit) ?\})?)", re.DOTALL
)
_BARE_UNIT = re.compile(
    r"(?P<amount>(?:.*[\d)}]|.*\\pi|.*\\\%))(?P<space> ?)"
    r"(?P<unit>[a-zA-Z]+\.?(?: ?\^ ?\{?-?\d\}?)?(?:(?: ?/ ?| )[a-zA-Z]+\.?(?: ?\^ ?\{?-?\d\}?)?)*)",
    re.DOTALL,
)
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")


@lru_cache(maxsize=50_000)
def read_answer(text: str) -> Form:
    """Read an answer as it was given."""
    form = read(normalise(text))
    return replace(form, raw=text.strip()) if isinstance(form, Expression) else form


def read(text: str, depth: int = 0) -> Form:
    """Read a normalised text; `depth` counts the brackets around it."""
    text = text.strip()
    if text.startswith("{") and closing(text) == len(text):
        # `{1, 2}` is meant as a set; without commas the braces only group.
        text = rf"\{{{text[1:-1]}\}}" if "," in text else text[1:-1].strip()
    if depth > _MAX_DEPTH or not text:
        return Expression(text)
    for flat in _FLAT:
        if (form := flat(text)) is not None:
            return form
    quantity = _quantity(text, depth + 1)
    # `1,234 dollars` is no list.
    if isinstance(quantity, Quantity) and isinstance(quantity.amount, Number):
        return quantity
    for deep in _DEEP:
        if (form := deep(text, depth + 1)) is not None:
            return form
    return quantity or read_words(text) or Expression(text)


def _reals(text: str) -> Form | None:
    plain = unworded(text)
    if _ALL.fullmatch(plain):
        return Intervals(None, (_REALS,))
    if _NONE.fullmatch(plain):
        return Intervals(None, ())
    return None


def _without(text: str, depth: int) -> Form | None:
    r"""Read `\mathbb{R}\setminus\{1,2\}`."""
    if not (found := _WITHOUT.fullmatch(text)):
        return None
    points = read(found[1], depth)
    items = points.items if isinstance(points, Items) else (points,)
    numbers = sorted((item for item in items if isinstance(item, Number)), key=lambda number: number.value)
    if len(numbers) != len(items):
        return None
    ends: list[Form] = [_MINUS_INFINITY, *numbers, _INFINITY]
    return Intervals(None, tuple(Span(low, high, False, False) for low, high in pairwise(ends)))


def _matrix(text: str, depth: int) -> Form | None:
    inner = bracketed(text)
    if inner and _MATRIX.match(inner[1]) and inner[1].count(r"\begin") == 1 and inner[1].endswith("}"):
        text = inner[1]
    bars = text.startswith("|") and text.endswith("|")
    text = text.strip("|").strip() if bars else text
    text = re.sub(r"^\\\{|\\(?:\}|right\.?)$|\.$", "", text).strip() if r"\begin" in text else text
    found = _MATRIX.match(text)
    if not found or not text.endswith(f"\\end{{{found['name']}}}") or text.count(r"\begin") > 1:
        return None
    body = text[found.end() : -len(f"\\end{{{found['name']}}}")]
    body = re.sub(r"^ ?\{[lcr| ]*\}|\\hline", "", body) if found["name"] == "array" else body
    rows = [row for row in (part.strip() for part in split(body, _ROW)[0]) if row]
    if found["name"] in ("cases", "aligned", "align", "align*", "gathered"):
        return _cases(rows, depth)
    cells = tuple(tuple(read(cell, depth) for cell in split(row, _CELL)[0]) for row in rows)
    return Matrix(cells, bars or found["name"] in ("vmatrix", "Vmatrix"))


def _cases(rows: list[str], depth: int) -> Form:
    items: list[Form] = []
    for row in rows:
        cells = [
            re.sub(r"^\\text\{ ?(?:if|for|when) ?\}|^(?:if|for|when) |,$", "", part.strip()).strip(" ,")
            for part in split(row, _CELL)[0]
        ]
        if len(cells) == 2 and (_RELATION.match(cells[1]) or _RELATION.search(cells[0] + "$") is not None):
            cells = ["".join(cells)]
        items.append(read(cells[0], depth) if len(cells) == 1 else Items("tuple", tuple(read(c, depth) for c in cells)))
    return items[0] if len(items) == 1 else Items("list", tuple(items))


def _several(text: str, depth: int) -> Form | None:
    """Items at the top level: by commas, semicolons, `and`, `or`."""
    text = unworded(text) if re.fullmatch(r"\\text\{[^{}]*\}", text) else text
    spaced = depth == 1 and re.search(r",\s", text) is not None
    parts, marks = split(text, _LOOSE_CONNECTOR if spaced else _CONNECTOR)
    parts = [part for part in parts if part]
    if len(parts) < 2 or not marks:
        return None
    sentence = re.fullmatch(r"[a-zA-Z ,.'-]+", text) and any(len(part.split()) > 2 for part in parts)
    if sentence and ";" not in marks:
        return None
    head = _assigned(parts[0])
    if head and not any(_RELATION.search(part) for part in parts[1:]):
        parts[0], name = head[1], head[0]
        return Equation(name, Items("list", _items(parts, depth)), True, text)
    items = _items(parts, depth)
    joined = _joined_intervals(items, marks)
    if joined is not None:
        return joined
    equations = [item for item in items if isinstance(item, Equation) and item.named]
    if len(equations) == len(items) and len({item.left for item in equations}) == 1:
        return Equation(equations[0].left, Items("list", tuple(item.right for item in equations)), True, text)
    return Items("list", items)


def _items(parts: list[str], depth: int) -> tuple[Form, ...]:
    """Read the parts; a part such as `\\pm 2` is two items."""
    items: list[Form] = []
    for part in parts:
        item = read(part, depth)
        items += item.items if isinstance(item, Items) and item.kind == "list" else [item]
    return tuple(items)


def _assigned(text: str) -> tuple[str, str] | None:
    sides = split(text, _RELATION)
    if len(sides[0]) == 2 and sides[1] == ["="] and _NAME.fullmatch(sides[0][0]):
        return sides[0][0], sides[0][1]
    return None


def _joined_intervals(items: tuple[Form, ...], marks: list[str]) -> Form | None:
    intervals = [item for item in items if isinstance(item, Intervals) and item.variable is not None]
    if len(intervals) != len(items) or len({item.variable for item in intervals}) != 1:
        return None
    variable = intervals[0].variable
    both = _intersection(intervals) if not any("or" in mark for mark in marks) else None
    return both or Intervals(variable, tuple(span for item in intervals for span in item.spans))


def _intersection(intervals: list[Intervals]) -> Intervals | None:
    """`x>1, x<3` as one interval; None where the two do not meet or their ends are not plain numbers."""
    if len(intervals) != 2 or any(len(item.spans) != 1 for item in intervals):
        return None
    one, two = (item.spans[0] for item in intervals)
    if isinstance(one.high, Number):
        one, two = two, one
    if not (isinstance(one.low, Number) and isinstance(two.high, Number)):
        return None
    if one.high != _INFINITY or two.low != _MINUS_INFINITY or one.low.value > two.high.value:
        return None
    return Intervals(intervals[0].variable, (Span(one.low, two.high, one.low_closed, two.high_closed),))


def _member(text: str, depth: int) -> Form | None:
    found = _MEMBER.fullmatch(text)
    if not found:
        return None
    inside = read(found["set"], depth)
    if isinstance(inside, Items) and inside.kind in ("tuple", "brackets") and len(inside.items) == 2:
        closed = inside.kind == "brackets"
        return Intervals(found["name"], (Span(inside.items[0], inside.items[1], closed, closed),))
    if isinstance(inside, Intervals):
        return Intervals(found["name"], inside.spans)
    if isinstance(inside, Items):
        return Equation(found["name"], Items("list", inside.items), True, text)
    return None


def _union(text: str, depth: int) -> Form | None:
    parts, _ = split(text, _UNION)
    if len(parts) < 2:
        return None
    spans: list[Span] = []
    for part in parts:
        item = _span(part, depth) or read(part, depth)
        if isinstance(item, Items) and item.kind == "set":
            spans += [Span(point, point, True, True) for point in item.items]
        elif isinstance(item, Intervals):
            spans += item.spans
        else:
            return None
    return Intervals(None, tuple(spans))


def _span(text: str, depth: int) -> Intervals | None:
    """Read `[0,1)` or `]0,1]` as an interval."""
    reverse = re.fullmatch(r"([\[\]])([^\[\]]*)([\[\]])", text.strip())
    if reverse and (reverse[1] == "]" or reverse[3] == "["):
        low_closed, high_closed, inside = reverse[1] == "[", reverse[3] == "]", reverse[2]
    else:
        # The two brackets of `[0,1)` need not be alike.
        found = bracketed(text.strip())
        if not found or found[0] == r"\{" or found[2] == r"\}":
            return None
        low_closed, high_closed, inside = found[0] == "[", found[2] == "]", found[1]
    ends, marks = split(inside, re.compile("[,;]"))
    if len(ends) != 2 or not all(ends) or len(marks) != 1:
        return None
    low, high = (read(re.sub(r"^\+ ?(?=\\infty)", "", end), depth) for end in ends)
    return Intervals(None, (Span(low, high, low_closed, high_closed),))


def _bracketed(text: str, depth: int) -> Form | None:
    found = bracketed(text)
    if not found:
        return _span(text, depth) if re.match(r"[\[\]]", text) else None
    opening, inside, end = found
    if opening == r"\{" and (built := _BUILT.fullmatch(inside)):
        condition = read(built["condition"], depth)
        return condition if isinstance(condition, Intervals) else None
    parts, _ = split(inside, re.compile("[,;]"))
    if any(not part for part in parts):
        return None
    if len(parts) == 1:
        return read(inside, depth) if (opening, end) in (("(", ")"), (r"\{", r"\}")) else None
    if (len({opening, end}) == 2 and (opening, end) in (("(", "]"), ("[", ")"))) or (
        r"\infty" in inside and len(parts) == 2 and opening != r"\{"
    ):
        return _span(text, depth)
    if opening == "[" and all(part.startswith("[") for part in parts):
        rows = [read(part, depth) for part in parts]
        if all(isinstance(row, Items) for row in rows):
            return Matrix(tuple(row.items for row in rows if isinstance(row, Items)), False)
    kinds: dict[str, str] = {r"\{": "set", "(": "tuple", "[": "brackets"}
    if re.search(r", ", inside):
        parts = split(inside, _LOOSE_CONNECTOR)[0] if opening == r"\{" else parts
    items = _items(parts, depth) if opening == r"\{" else tuple(read(part, depth) for part in parts)
    return Items(kinds[opening], items)  # type: ignore[arg-type]


def _relation(text: str, depth: int) -> Form | None:
    sides, marks = split(text, _RELATION)
    if not marks or any(not side for side in sides):
        return None
    if all(mark == "=" for mark in marks):
        if not _NAME.fullmatch(sides[0]) and _NAME.fullmatch(sides[-1]) and len(sides) == 2:
            sides = sides[::-1]
        return Equation(_tight_name(sides[0]), read(sides[-1], depth), _NAME.fullmatch(sides[0]) is not None, text)
    if len(sides) == 2 and marks[0] != "=":
        left, right, mark = sides[0], sides[1], marks[0]
        if not _VARIABLE.fullmatch(left) and _VARIABLE.fullmatch(right):
            left, right, mark = right, left, _FLIPPED.get(mark, mark)
        if not _VARIABLE.fullmatch(left) or _VARIABLE.fullmatch(right):
            return None
        end = read(right, depth)
        if mark == r"\neq":
            return Intervals(left, (Span(_MINUS_INFINITY, end, False, False), Span(end, _INFINITY, False, False)))
        if mark in (">", r"\geq"):
            return Intervals(left, (Span(end, _INFINITY, mark == r"\geq", False),))
        return Intervals(left, (Span(_MINUS_INFINITY, end, False, mark == r"\leq"),))
    if len(sides) == 3 and _VARIABLE.fullmatch(sides[1]):
        low, high = read(sides[0], depth), read(sides[2], depth)
        if set(marks) <= {"<", r"\leq"}:
            return Intervals(sides[1], (Span(low, high, marks[0] == r"\leq", marks[1] == r"\leq"),))
        if set(marks) <= {">", r"\geq"}:
            return Intervals(sides[1], (Span(high, low, marks[1] == r"\geq", marks[0] == r"\geq"),))
    return None


def _tight_name(name: str) -> str:
    return re.sub(r"\s|\\text|[{}]", "", name)


def _plus_minus(text: str, depth: int) -> Form | None:
    if len(re.findall(r"\\pm(?![a-z])", text)) != 1:
        return None
    other = re.sub(r"\\mp(?![a-z])", "+", re.sub(r"\\pm(?![a-z])", "-", text))
    first = re.sub(r"\\mp(?![a-z])", "-", re.sub(r"^\\pm(?![a-z])", "", text).replace(r"\pm", "+"))
    return Items("list", (read(first, depth), read(other, depth)))


def _quantity(text: str, depth: int) -> Form | None:
    if found := _CURRENCY.fullmatch(text):
        amount = read(found["sign"] + found["amount"], depth)
        if isinstance(amount, Quantity):
            amount = amount.amount
        unit = read_unit(found["unit"])
        return Quantity(amount, unit) if unit else None
    for pattern in (_BACK_CURRENCY, _DEGREES, _TEXT_UNIT):
        if (found := pattern.fullmatch(text)) and not _has_words(found["amount"]) and not _TRIGONOMETRIC.search(text):
            unit = read_unit(found["unit"])
            if unit is not None and not found["amount"].endswith(("^", "_", "-", "+", "=", "{", "(")):
                return Quantity(read(found["amount"], depth), unit)
    found = _BARE_UNIT.fullmatch(text)
    if not found or _has_words(found["amount"]):
        return None
    first = re.split(r"[ /.^]", found["unit"])[0]
    amount = read(found["amount"], depth)
    known = is_known_unit(first) and (len(first) > 1 or (bool(found["space"]) and isinstance(amount, Number)))
    counted = isinstance(amount, Number) and bool(found["space"]) and len(first) > 2
    square = first in ("square", "sq", "cubic", "cu")
    unit = read_unit(found["unit"]) if known or counted or square else None
    return Quantity(amount, unit) if unit else None


def _has_words(text: str) -> bool:
    return r"\text" in text or re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}", text) is not None


_FLAT: tuple[Callable[[str], Form | None], ...] = (
    read_number,
    read_numeral,
    read_ordinal,
    read_compound,
    read_moment,
    read_choice,
    read_number_word,
    _reals,
)
_DEEP: tuple[Callable[[str, int], Form | None], ...] = (
    _without,
    _matrix,
    _union,
    _several,
    _member,
    _bracketed,
    _relation,
    _plus_minus,
)

r"""From two forms to a verdict, or to a question that sympy has to decide.

A question is JSON: `true`, `false`, `["same", gold, answer]` for two LaTeX expressions, `["all", …]` and `["any", …]`
of questions, and `["pairs", rows]`, where `rows[i][j]` asks whether item i of the gold is item j of the answer, and
each must find its own.
"""

import re
from typing import Any

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
from hpt_trl.rewards.answers.hostile import is_hostile
from hpt_trl.rewards.answers.moments import Date, Ratio, Time
from hpt_trl.rewards.answers.normalising import tight
from hpt_trl.rewards.answers.numbers import Number
from hpt_trl.rewards.answers.reading import read
from hpt_trl.rewards.answers.words import Choice, Words

Question = Any
_MAX_ITEMS = 40
# `y = 2x` and `f(x) = 2x` say the same.
_FUNCTION = re.compile(r"y [fgh]\(x\)|[fgh]\(x\) y")
# math-verify multiplies `1 2`.
_UNDECIDABLE = re.compile(r"\d \d")


def compare(gold: Form, answer: Form) -> Question:
    """Return whether two forms are equal: True, False, or what sympy has to be asked."""
    if gold == answer:
        return True
    if isinstance(gold, Quantity) or isinstance(answer, Quantity):
        return _quantities(gold, answer)
    if isinstance(gold, Equation) or isinstance(answer, Equation):
        return _equations(gold, answer)
    for one, two in ((gold, answer), (answer, gold)):
        if isinstance(one, Choice):
            return _choices(one, two)
    if isinstance(gold, Items) or isinstance(answer, Items):
        return _items(gold, answer)
    if type(gold) is not type(answer):
        return _unlike(gold, answer)
    if isinstance(gold, Number | Time | Ratio):
        return gold.equals(answer)  # type: ignore[arg-type]
    if isinstance(gold, Date):
        assert isinstance(answer, Date)
        same = (gold.month, gold.day, gold.slashed) == (answer.month, answer.day, answer.slashed)
        return same and (gold.year == answer.year or None in (gold.year, answer.year))
    if isinstance(gold, Words):
        assert isinstance(answer, Words)
        return gold.text == answer.text
    if isinstance(gold, Intervals):
        assert isinstance(answer, Intervals)
        return _intervals(gold, answer)
    if isinstance(gold, Matrix):
        assert isinstance(answer, Matrix)
        return _matrices(gold, answer)
    if isinstance(gold, Expression):
        assert isinstance(answer, Expression)
        return _expressions(gold, answer)
    return False


def all_of(questions: list[Question]) -> Question:
    """Join questions of which each must be true."""
    if any(question is False for question in questions):
        return False
    open_ones = [question for question in questions if question is not True]
    return ["all", *open_ones] if open_ones else True


def any_of(questions: list[Question]) -> Question:
    """Join questions of which one must be true."""
    if any(question is True for question in questions):
        return True
    open_ones = [question for question in questions if question is not False]
    return ["any", *open_ones] if open_ones else False


def same(gold: str, answer: str) -> Question:
    """Ask for two LaTeX expressions, unless they are equal as texts or one of them is hostile."""
    if tight(gold) == tight(answer):
        return bool(gold)
    if _UNDECIDABLE.search(gold) or _UNDECIDABLE.search(answer) or {gold, answer} & {r"\infty", r"-\infty"}:
        return False
    if not gold or not answer or is_hostile(gold) or is_hostile(answer):
        return False
    return ["same", gold, answer]


def latex(form: Form) -> str | None:
    """LaTeX of a form that stands for one value; None for the others."""
    if isinstance(form, Expression):
        return form.latex
    if isinstance(form, Number):
        if form.places is not None:
            scaled = form.value * 10**form.places
            digits = str(abs(int(scaled))).rjust(form.places + 1, "0")
            sign = "-" if form.value < 0 else ""
            return f"{sign}{digits[: -form.places]}.{digits[-form.places :]}" if form.places else sign + digits
        return rf"\frac{{{form.value.numerator}}}{{{form.value.denominator}}}"
    if isinstance(form, Words):
        return form.latex if form.bare and " " not in form.latex else None
    if isinstance(form, Choice):
        return form.letter if not form.rest else None
    return None


def _expressions(gold: Expression, answer: Expression) -> Question:
    questions = [same(gold.latex, answer.latex)]
    # What our reading does not know, math-verify may read from the text as it was given.
    raw = gold.raw or gold.latex, answer.raw or answer.latex
    if raw != (gold.latex, answer.latex):
        hostile = is_hostile(gold.latex) or is_hostile(answer.latex) or is_hostile(raw[0]) or is_hostile(raw[1])
        questions.append(False if hostile else ["same", *raw])
    return any_of(questions)


def _unlike(gold: Form, answer: Form) -> Question:
    kinds = {type(gold), type(answer)}
    if kinds == {Ratio, Number}:
        ratio, number = (gold, answer) if isinstance(gold, Ratio) else (answer, gold)
        assert isinstance(ratio, Ratio) and isinstance(number, Number)
        return len(ratio.parts) == 2 and ratio.parts[1] != 0 and ratio.parts[0] / ratio.parts[1] == number.value
    for one, two in ((gold, answer), (answer, gold)):
        if isinstance(one, Matrix) and isinstance(two, Number | Expression):
            cells = [[latex(cell) for cell in row] for row in one.rows]
            rows = r" \\ ".join(" & ".join(str(cell) for cell in row) for row in cells)
            name, value = "vmatrix" if one.bars else "pmatrix", latex(two)
            known = value is not None and all(cell is not None for row in cells for cell in row)
            return known and same(rf"\begin{{{name}}} {rows} \end{{{name}}}", str(value))
        if isinstance(one, Intervals) and isinstance(two, Expression):
            return _interval_and_expression(one, two)
    texts = latex(gold), latex(answer)
    if texts[0] is None or texts[1] is None:
        return False
    if {Words, Number} == kinds:
        return False
    raws = [
        form.raw if isinstance(form, Expression) and form.raw else text
        for form, text in zip((gold, answer), texts, strict=True)
    ]
    first = same(texts[0], texts[1])
    if raws == list(texts) or any(is_hostile(str(text)) for text in (*raws, *texts)):
        return first
    return any_of([first, ["same", *raws]])


def _interval_and_expression(one: Intervals, two: Expression) -> Question:
    if not one.spans or not any(mark in two.latex for mark in ("<", ">", r"\leq", r"\geq")):
        return False
    ends = [(latex(span.low), latex(span.high)) for span in one.spans]
    if any(end is None for pair in ends for end in pair):
        return False
    spans = [
        f"{'(['[span.low_closed]}{low},{high}{')]'[span.high_closed]}"
        for span, (low, high) in zip(one.spans, ends, strict=True)
    ]
    # math-verify solves `x^2<4` where it stands first.
    solved = same(two.latex, r"\cup ".join(spans))
    if one.variable is None:
        return solved
    if not re.search(rf"(?<![a-zA-Z\\]){re.escape(one.variable)}(?![a-zA-Z])", two.latex):
        return False
    questions = [solved]
    if len(one.spans) == 1:
        (low, high), span = ends[0], one.spans[0]
        if low == r"-\infty":
            questions.append(same(one.variable + (r"\leq " if span.high_closed else "<") + str(high), two.latex))
        elif high == r"\infty":
            questions.append(same(one.variable + (r"\geq " if span.low_closed else ">") + str(low), two.latex))
    return any_of(questions)


def _quantities(gold: Form, answer: Form) -> Question:
    amounts = [form.amount if isinstance(form, Quantity) else form for form in (gold, answer)]
    units = [form.unit if isinstance(form, Quantity) else None for form in (gold, answer)]
    if units[0] is not None and units[1] is not None:
        if not units[0].agrees(units[1]):
            return False
        if units[0].factor != units[1].factor:
            return all(isinstance(amount, Number) for amount in amounts) and (
                amounts[0].value * units[0].factor == amounts[1].value * units[1].factor  # type: ignore[union-attr]
            )
        return compare(*amounts)
    unit = units[0] or units[1]
    assert unit is not None
    if not unit.dimensions and unit.factor != 1:
        at = 0 if units[0] else 1
        amount = amounts[at]
        amounts[at] = Number(amount.value * unit.factor) if isinstance(amount, Number) else amount
    other = amounts[1] if units[0] else amounts[0]
    # `5m` is five times m, or five metres where the other side says so.
    if isinstance(other, Expression) and other.latex[-1:].isalpha():
        spaced = read(f"{other.latex[:-1]} {other.latex[-1]}")
        if isinstance(spaced, Quantity):
            return compare(gold, spaced) if units[0] else compare(spaced, answer)
    return compare(*amounts)


def _choices(choice: Choice, other: Form) -> Question:
    if isinstance(other, Choice):
        if choice.letter != other.letter:
            return False
        return not (choice.rest and other.rest) or compare(read(choice.rest), read(other.rest))
    if isinstance(other, Expression) and other.latex.strip().upper() == choice.letter:
        return True
    if choice.rest:
        return compare(read(choice.rest), other)
    texts = latex(choice), latex(other)
    return False if texts[1] is None or not isinstance(other, Expression) else same(str(texts[0]), texts[1])


def _equations(gold: Form, answer: Form) -> Question:
    if isinstance(gold, Equation) and isinstance(answer, Equation):
        if gold.named and answer.named:
            if gold.left != answer.left and not _FUNCTION.fullmatch(f"{gold.left} {answer.left}"):
                questions = [same(gold.latex, answer.latex)] if gold.left in str(answer.right) else []
                return any_of(questions)
            return compare(gold.right, answer.right)
        return same(gold.latex, answer.latex)
    equation, other = (gold, answer) if isinstance(gold, Equation) else (answer, gold)
    assert isinstance(equation, Equation)
    if isinstance(other, Intervals) and other.variable is not None:
        return False
    if equation.named or equation is answer:
        return compare(*((equation.right, other) if equation is gold else (other, equation.right)))
    return False


def _items(gold: Form, answer: Form) -> Question:
    if not isinstance(gold, Items) or not isinstance(answer, Items):
        items, other = (gold, answer) if isinstance(gold, Items) else (answer, gold)
        assert isinstance(items, Items)
        if items.kind in ("tuple", "brackets") and len(items.items) == 2:
            closed = items.kind == "brackets"
            interval = Intervals(None, (Span(items.items[0], items.items[1], closed, closed),))
            if isinstance(other, Intervals):
                return _intervals(*((interval, other) if items is gold else (other, interval)))
            if isinstance(other, Expression):
                return _interval_and_expression(interval, other)
        # `\pm 0` and `\{5, 5\}` are one value.
        distinct = tuple(dict.fromkeys(items.items))
        if len(distinct) == 1 and items.kind in ("set", "list"):
            return compare(distinct[0], other) if items is gold else compare(other, distinct[0])
        return False
    kinds = {gold.kind, answer.kind}
    if "brackets" in kinds and len(kinds) == 2 and (len(gold.items) == 2 or "set" in kinds):
        return False
    if kinds == {"set", "tuple"}:
        return False
    one, two = gold.items, answer.items
    if kinds <= {"set", "list"} and "set" in kinds:
        one, two = tuple(dict.fromkeys(one)), tuple(dict.fromkeys(two))
    if len(one) != len(two) or len(one) > _MAX_ITEMS:
        return False
    # Values for several names stand in the order of the names.
    named = [_are_named(items) for items in (one, two)]
    if kinds <= {"set", "list"} and named[0] == named[1]:
        return pairs([[compare(left, right) for right in two] for left in one])
    return all_of([compare(left, right) for left, right in zip(one, two, strict=True)])


def _are_named(items: tuple[Form, ...]) -> bool:
    names = {item.left for item in items if isinstance(item, Equation) and item.named}
    # `x_1` and `x_2` number the roots of one equation.
    return len(names) == len(items) and (len(names) == 1 or len({name.partition("_")[0] for name in names}) > 1)


def pairs(rows: list[list[Question]]) -> Question:
    """Join questions so that every row and every column is used once."""
    if any(all(question is False for question in row) for row in rows):
        return False
    if all(question in (True, False) for row in rows for question in row):
        taken: dict[int, int] = {}
        return all(_place(row, rows, taken, set()) for row in range(len(rows)))
    return ["pairs", rows]


def _place(row: int, rows: list[list[Question]], taken: dict[int, int], seen: set[int]) -> bool:
    for column, question in enumerate(rows[row]):
        if question and column not in seen:
            seen.add(column)
            if column not in taken or _place(taken[column], rows, taken, seen):
                taken[column] = row
                return True
    return False


def _intervals(gold: Intervals, answer: Intervals) -> Question:
    if gold.variable is not None and answer.variable is not None and gold.variable != answer.variable:
        return False
    if len(gold.spans) != len(answer.spans) or len(gold.spans) > _MAX_ITEMS:
        return False
    return pairs([[_spans(one, two) for two in answer.spans] for one in gold.spans]) if gold.spans else True


def _spans(one: Span, two: Span) -> Question:
    if (one.low_closed, one.high_closed) != (two.low_closed, two.high_closed):
        return False
    return all_of([compare(one.low, two.low), compare(one.high, two.high)])


def _matrices(gold: Matrix, answer: Matrix) -> Question:
    if gold.bars != answer.bars or [len(row) for row in gold.rows] != [len(row) for row in answer.rows]:
        return False
    cells = [
        compare(left, right)
        for row, other in zip(gold.rows, answer.rows, strict=True)
        for left, right in zip(row, other, strict=True)
    ]
    return all_of(cells)

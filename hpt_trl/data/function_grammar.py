"""A grammar of small functions over a list of whole numbers: what they are asked, what they give, how they read.

A function is a chain of steps, each of which filters, changes or arranges the numbers, and an end that returns
something of them. A step knows its words, its value and its Python: so a problem comes with tests and with solutions in
several spellings, and the solution of another chain is a wrong one whose fault is known.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Numbers = list[int]


@dataclass(frozen=True)
class Step:
    """One step of a function.

    Attributes:
        kind: `filter`, `map`, `arrange` or `end`.
        name: Short, without spaces; it identifies the step.
        words: What the statement says.
        code: A condition or an expression of `x`, or of `xs` for what arranges or ends.
        apply: Its value: of filters and maps by number, of the others of the whole list.
        longer: Lines of another spelling, for ends.
    """

    kind: str
    name: str
    words: str
    code: str
    apply: Callable
    longer: tuple[str, ...] = ()


@dataclass(frozen=True)
class Function:
    """A chain of steps and its end."""

    steps: tuple[Step, ...]
    end: Step

    @property
    def name(self) -> str:
        """Identifies the function."""
        return ".".join(step.name for step in (*self.steps, self.end))

    @property
    def statement(self) -> str:
        """What is asked, a sentence."""
        words = ", ".join([*(step.words for step in self.steps), f"and return {self.end.words}"])
        return f"{words[0].upper()}{words[1:]}."

    def __call__(self, numbers: Numbers) -> int | Numbers:
        """The value for some numbers."""
        for step in self.steps:
            if step.kind == "filter":
                numbers = [x for x in numbers if step.apply(x)]
            elif step.kind == "map":
                numbers = [step.apply(x) for x in numbers]
            else:
                numbers = step.apply(numbers)
        return self.end.apply(numbers)


def _filters() -> list[Step]:
    steps = [
        Step("filter", "even", "keep the even numbers", "x % 2 == 0", lambda x: x % 2 == 0),
        Step("filter", "odd", "keep the odd numbers", "x % 2 == 1", lambda x: x % 2 == 1),
        Step("filter", "positive", "keep the positive numbers", "x > 0", lambda x: x > 0),
        Step("filter", "negative", "keep the negative numbers", "x < 0", lambda x: x < 0),
    ]
    for c in range(1, 6):
        steps += [
            Step("filter", f"above{c}", f"keep the numbers above {c}", f"x > {c}", lambda x, c=c: x > c),
            Step("filter", f"below{c}", f"keep the numbers below {c}", f"x < {c}", lambda x, c=c: x < c),
        ]
    for c in (3, 4, 5):
        words = f"keep the multiples of {c}"
        steps.append(Step("filter", f"multiple{c}", words, f"x % {c} == 0", lambda x, c=c: x % c == 0))
    return steps


def _maps() -> list[Step]:
    steps = [
        Step("map", "square", "square each", "x * x", lambda x: x * x),
        Step("map", "negate", "negate each", "-x", lambda x: -x),
        Step("map", "absolute", "take the absolute value of each", "abs(x)", abs),
    ]
    for c in range(1, 6):
        steps += [
            Step("map", f"add{c}", f"add {c} to each", f"x + {c}", lambda x, c=c: x + c),
            Step("map", f"subtract{c}", f"subtract {c} from each", f"x - {c}", lambda x, c=c: x - c),
        ]
    for c in range(2, 6):
        steps.append(Step("map", f"times{c}", f"multiply each by {c}", f"x * {c}", lambda x, c=c: x * c))
    for c in (3, 4, 5):
        words = f"take the remainder of each by {c}"
        steps.append(Step("map", f"remainder{c}", words, f"x % {c}", lambda x, c=c: x % c))
    return steps


def _arrangements() -> list[Step]:
    steps = [
        Step("arrange", "reverse", "reverse the order", "xs[::-1]", lambda xs: xs[::-1]),
        Step("arrange", "sort", "sort them", "sorted(xs)", sorted),
        Step("arrange", "every2", "keep every second number from the first", "xs[::2]", lambda xs: xs[::2]),
    ]
    for c in range(1, 5):
        many = "number" if c == 1 else f"{c} numbers"
        steps += [
            Step("arrange", f"first{c}", f"keep the first {many}", f"xs[:{c}]", lambda xs, c=c: xs[:c]),
            Step("arrange", f"last{c}", f"keep the last {many}", f"xs[-{c}:]", lambda xs, c=c: xs[-c:]),
        ]
    return steps


def _ends() -> list[Step]:
    return [
        Step(
            *("end", "sum", "their sum", "sum(xs)", sum),
            longer=("total = 0", "for x in xs:", "    total += x", "return total"),
        ),
        Step(
            *("end", "count", "how many there are", "len(xs)", len),
            longer=("count = 0", "for x in xs:", "    count += 1", "return count"),
        ),
        Step(
            *("end", "largest", "the largest, or 0 of none", "max(xs, default=0)", lambda xs: max(xs, default=0)),
            longer=("if not xs:", "    return 0", "return max(xs)"),
        ),
        Step(
            *("end", "smallest", "the smallest, or 0 of none", "min(xs, default=0)", lambda xs: min(xs, default=0)),
            longer=("if not xs:", "    return 0", "return min(xs)"),
        ),
        Step("end", "list", "the list", "xs", lambda xs: xs),
    ]


STEPS = {"filter": _filters(), "map": _maps(), "arrange": _arrangements(), "end": _ends()}
# How often a step of a kind stands in a chain.
_KINDS = ("filter", "map", "map", "arrange")


def draw_function(length: int, generator: random.Random) -> Function:
    """A function of so many steps, no two neighbours alike in name."""
    steps: list[Step] = []
    while len(steps) < length:
        step = generator.choice(STEPS[generator.choice(_KINDS)])
        if not steps or steps[-1].name != step.name:
            steps.append(step)
    return Function(tuple(steps), generator.choice(STEPS["end"]))


def write(function: Function, generator: random.Random) -> str:
    """The body of a function in Python, indented by four spaces, each step in one of its spellings."""
    lines: list[str] = []
    for step in function.steps:
        lines += _spelled(step, longer=generator.random() < 0.3)
    if function.end.longer and generator.random() < 0.3:
        lines += function.end.longer
    else:
        lines.append(f"return {function.end.code}")
    return "".join(f"    {line}\n" for line in lines)


def _spelled(step: Step, *, longer: bool) -> Sequence[str]:
    if step.kind == "arrange":
        return [f"xs = {step.code}"]
    if step.kind == "filter":
        if longer:
            return ["kept = []", "for x in xs:", f"    if {step.code}:", "        kept.append(x)", "xs = kept"]
        return [f"xs = [x for x in xs if {step.code}]"]
    if longer:
        return ["new = []", "for x in xs:", f"    new.append({step.code})", "xs = new"]
    return [f"xs = [{step.code} for x in xs]"]


def with_a_fault(function: Function, generator: random.Random) -> Function:
    """Another function that a careless reader might write: a step of the same kind, one left out, two exchanged."""
    steps, places = list(function.steps), range(len(function.steps))
    fault = generator.choice(["other", "other", "other", "end", "left out", "exchanged"])
    if fault == "exchanged" and len(steps) > 1:
        place = generator.choice(places[:-1])
        steps[place], steps[place + 1] = steps[place + 1], steps[place]
    elif fault == "left out":
        del steps[generator.choice(places)]
    elif fault == "end":
        return Function(function.steps, generator.choice([end for end in STEPS["end"] if end != function.end]))
    else:
        place = generator.choice(places)
        near = [step for step in STEPS[steps[place].kind] if step.name != steps[place].name]
        stem = steps[place].name.rstrip("0123456789")
        # The same step by another number, where there is one, is the likelier slip.
        alike = [step for step in near if step.name.rstrip("0123456789") == stem]
        steps[place] = generator.choice(alike if alike and generator.random() < 0.5 else near)
    return Function(tuple(steps), function.end)

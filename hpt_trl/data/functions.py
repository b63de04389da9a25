"""Programming problems that the package makes: small functions with tests, right and wrong solutions, by difficulty.

Code for methods that need many solutions of a problem, and for pass@k, where no data set can be fetched and a small
model must be able to learn something within minutes. A quarter of the problems, by their content, is kept out of every
training split, whatever its part and seed: a held-out problem is one that no stage of a chain has trained on.
"""

import difflib
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from datasets import Dataset

from hpt_trl.data.function_grammar import Function, Numbers, draw_function, with_a_fault, write
from hpt_trl.errors import UserError

FUNCTIONS = "functions:"
PARTS = ("documents", "demonstrations", "solutions", "prompts")
ENTRY_POINT = "solve"

_HELD_OUT = 4  # One problem in so many.
_TESTS = 7
# Solutions of one problem in `solutions`: so many right and so many wrong ones.
_RIGHT, _WRONG = 2, 2


@dataclass(frozen=True)
class FunctionsOptions:
    """What `dataset_options` may hold for `functions:<part>`.

    `size` and `test_size` count rows: of `solutions` up to two right and two wrong ones of each problem. `easiest` and
    `hardest` bound the difficulty, the number of steps of a function. `noise` of documents is the share of wrong
    solutions among the training documents.
    """

    size: int = 4000
    test_size: int = 200
    easiest: int = 1
    hardest: int = 3
    noise: float = 0.0
    seed: int = 0


def functions(part: str, options: dict[str, Any], *, seed: int) -> tuple[Dataset, Dataset | None]:
    """Build one part.

    - `documents`: text, a whole function
    - `demonstrations`: prompt (signature and docstring), completion (the body), and those of `prompts`
    - `solutions`: instruction, output, problem_id, is_correct, difficulty, test, entry_point
    - `prompts`: prompt, test, entry_point, difficulty, problem_id

    `test` and `entry_point` are as HumanEval has them: `check(candidate)` with assertions.

    Args:
        part: one of `PARTS`.
        options: fields of `FunctionsOptions`; `seed` in it comes before the argument.

    Returns:
        The training rows and the held-out rows (None for `test_size: 0`).

    Raises:
        UserError: an unknown part or option, or a value out of range.
    """
    if part not in PARTS:
        near = difflib.get_close_matches(part, PARTS, n=1)
        hint = f"did you mean `{FUNCTIONS}{near[0]}`? " if near else ""
        raise UserError(
            f"dataset_name: there are no `{FUNCTIONS}{part}`; {hint}Parts: {', '.join(FUNCTIONS + p for p in PARTS)}."
        )
    checked = _options(part, {"seed": seed, **options})
    train = list(_rows(part, checked, checked.size, held_out=False))
    test = list(_rows(part, checked, checked.test_size, held_out=True))
    return Dataset.from_list(train), Dataset.from_list(test) if test else None


def prompt_of(function: Function) -> str:
    """Signature and docstring, as HumanEval writes them."""
    return f'def {ENTRY_POINT}(xs):\n    """{function.statement}"""\n'


def inputs_of(function: Function) -> list[Numbers]:
    """The numbers that a function is tested with: none, and some that its name draws."""
    generator = random.Random(f"inputs {function.name}")
    return [[], *([generator.randint(-9, 12) for _ in range(generator.randint(3, 9))] for _ in range(_TESTS - 1))]


def check_of(function: Function) -> str:
    """The tests as HumanEval writes them: `check(candidate)`."""
    lines = [f"    assert candidate({numbers}) == {function(list(numbers))}\n" for numbers in inputs_of(function)]
    return "def check(candidate):\n" + "".join(lines)


def _rows(part: str, options: FunctionsOptions, count: int, *, held_out: bool) -> Iterator[dict[str, Any]]:
    generator = random.Random(f"{options.seed} {part} {held_out}")
    made = 0
    for function in _problems(options, generator, held_out):
        for row in _rows_of(part, function, generator, 0.0 if held_out else options.noise):
            if made == count:
                return
            made += 1
            yield row


def _problems(options: FunctionsOptions, generator: random.Random, held_out: bool) -> Iterator[Function]:
    """Different problems whose tests are worth something, without end as long as there are any."""
    seen: set[str] = set()
    missed = 0
    while missed < 10_000:
        function = draw_function(generator.randint(options.easiest, options.hardest), generator)
        if function.name in seen or is_held_out(function) != held_out or not _tells(function):
            missed += 1
            continue
        missed = 0
        seen.add(function.name)
        yield function
    raise UserError(
        f"dataset_options of {FUNCTIONS}: there are only {len(seen)} problems of difficulty {options.easiest} to "
        f"{options.hardest}; write a smaller `size` or `test_size`, or a larger `hardest`."
    )


def is_held_out(function: Function) -> bool:
    """Whether a problem is kept out of the training rows: by its content alone."""
    return hashlib.blake2b(function.name.encode(), digest_size=4).digest()[0] % _HELD_OUT == 0


def _tells(function: Function) -> bool:
    """Whether the tests tell several values apart, and notice every step that is left out."""
    expected = [function(list(numbers)) for numbers in inputs_of(function)]
    shorter = [
        Function(function.steps[:place] + function.steps[place + 1 :], function.end)
        for place in range(len(function.steps))
    ]
    return len(set(map(str, expected))) > 2 and all(
        [other(list(numbers)) for numbers in inputs_of(function)] != expected for other in shorter
    )


def _rows_of(part: str, function: Function, generator: random.Random, noise: float) -> Iterator[dict[str, Any]]:
    prompt = prompt_of(function)
    about = {
        "problem_id": function.name,
        "difficulty": len(function.steps),
        "test": check_of(function),
        "entry_point": ENTRY_POINT,
    }
    if part == "documents":
        body = _wrong(function, generator) if generator.random() < noise else write(function, generator)
        yield {"text": prompt + body}
    elif part == "prompts":
        yield {"prompt": prompt, **about}
    elif part == "demonstrations":
        yield {"prompt": prompt, "completion": write(function, generator), **about}
    else:
        # A set has another order in each process.
        right = sorted({write(function, generator) for _ in range(8 * _RIGHT)})
        for output in generator.sample(right, min(_RIGHT, len(right))):
            yield {"instruction": prompt, "output": output, "is_correct": True, **about}
        wrong = {_wrong(function, generator) for _ in range(_WRONG)}
        for output in sorted(wrong):
            yield {"instruction": prompt, "output": output, "is_correct": False, **about}


def _wrong(function: Function, generator: random.Random) -> str:
    """A solution with a fault that the tests find."""
    expected = [function(list(numbers)) for numbers in inputs_of(function)]
    while True:
        other = with_a_fault(function, generator)
        if [other(list(numbers)) for numbers in inputs_of(function)] != expected:
            return write(other, generator)


def _options(part: str, options: dict[str, Any]) -> FunctionsOptions:
    source = f"dataset_options of {FUNCTIONS}{part}"
    known = [field.name for field in fields(FunctionsOptions) if field.name != "noise" or part == "documents"]
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise UserError(f"{source}: unknown option `{key}`; {hint}Known: {', '.join(known)}.")
        if key == "noise":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise UserError(f"{source}: `noise: {value}` is a share of the documents; write 0 to 1.")
            continue
        least = 0 if key in ("test_size", "seed") else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{source}: `{key}: {value}` must be a whole number of at least {least}.")
    made = FunctionsOptions(**options)
    if not made.easiest <= made.hardest <= 6:
        raise UserError(
            f"{source}: `easiest: {made.easiest}` and `hardest: {made.hardest}`; write 1 to 6, the first at most the "
            "second."
        )
    return made

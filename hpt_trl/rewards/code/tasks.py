"""What a row asks a program to do, by the columns that the data sets have.

| Columns | As in | Tests |
|---|---|---|
| `public_tests`, `private_tests`, `generated_tests` | CodeContests | inputs and the outputs that belong to them |
| `test_list`, `test_setup_code`, `test_imports` | MBPP | assertions |
| `test`, `entry_point` | HumanEval | a function `check(candidate)`, split into its assertions |
| `tests` | your own | assertions, as a list or as one text |

MBPP's `challenge_test_list` is not run, for no published figure counts it; `column_mapping: {tests:
challenge_test_list}` does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpt_trl.data.sources import ROW
from hpt_trl.errors import UserError
from hpt_trl.rewards.code.comparing import same_output
from hpt_trl.rewards.code.extraction import extract_code
from hpt_trl.rewards.code.splitting import called_function, imported_modules, split_tests
from hpt_trl.rewards.sandbox.program import Outcome, Program

_INPUTS = ("public_tests", "private_tests", "generated_tests")
# At least one of them makes a task.
TEST_COLUMNS = (*_INPUTS, "test_list", "test", "tests")
# All that are read.
COLUMNS = (*TEST_COLUMNS, "entry_point", "test_setup_code", "test_imports", ROW)


@dataclass(frozen=True)
class Task:
    """The tests of a row.

    Attributes:
        entry_point: the function that is asked for; None for a script.
        tests: sources, each a test (see `Program`); empty for a script.
        setup: source that the tests need.
        imports: modules of the standard library that tests and setup import.
        inputs: of a script.
        outputs: what it has to write, one for each input.
    """

    entry_point: str | None = None
    tests: tuple[str, ...] = ()
    setup: str = ""
    imports: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __len__(self) -> int:
        """The number of tests."""
        return len(self.tests) or len(self.inputs)

    def program(self, completion: str, prompt: str = "") -> Program:
        """The program that a completion stands for, ready to be run on the tests; see `extract_code`."""
        code = extract_code(completion, prompt, self.entry_point)
        if self.inputs:
            return Program(code, inputs=self.inputs)
        return Program(code, self.setup, self.tests, keeps=self.entry_point, imports=self.imports)

    def verdicts(self, outcome: Outcome) -> tuple[bool, ...]:
        """Whether the program passed each of the tests; those that were not reached it did not pass."""
        if self.inputs:
            pairs = zip(outcome.runs, self.outputs, strict=False)
            passed = [run.status == "ended" and same_output(run.stdout, expected) for run, expected in pairs]
        else:
            passed = [result.passed for result in outcome.results]
        return (*passed, *[False] * (len(self) - len(passed)))


def task_of(row: Mapping[str, Any], place: str) -> Task:
    """Reads the tests of a row.

    Args:
        row: its columns; those that it lacks may be missing or None.
        place: how messages call it, e.g. `data.jsonl, line 3`.

    Raises:
        UserError: it has no tests, or some that cannot be read.
    """
    if any(row.get(name) for name in _INPUTS):
        return _script(row, place)
    try:
        task = _function(row, place)
    except SyntaxError as error:
        raise UserError(
            f"{place}: the tests are no Python: {error.msg}: {(error.text or '').strip()!r:.80}; write assertions."
        ) from error
    if task is None:
        raise UserError(
            f"{place} has no tests. Write some in one of these columns, or drop the row: {', '.join(TEST_COLUMNS)}."
        )
    return task


def _function(row: Mapping[str, Any], place: str) -> Task | None:
    entry_point, setup = row.get("entry_point"), ""
    if row.get("test_list"):
        tests = _texts(row["test_list"], "test_list", place)
        parts = row.get("test_imports") or []
        imports = [parts] if isinstance(parts, str) else _texts(parts, "test_imports", place)
        setup = "\n".join([*imports, row.get("test_setup_code") or ""]).strip()
    elif row.get("test"):
        if not isinstance(row["test"], str):
            raise UserError(
                f"{place}: `test` is {row['test']!r:.60}; write the source of a function `check(candidate)`."
            )
        if not isinstance(entry_point, str) or not entry_point.isidentifier():
            raise UserError(
                f"{place}: `test` needs the column `entry_point`, the name of the function that is tested; it is "
                f"{entry_point!r:.60}."
            )
        tests = split_tests(row["test"], entry_point)
    elif row.get("tests"):
        given = row["tests"]
        tests = split_tests(given, None) if isinstance(given, str) else _texts(given, "tests", place)
    else:
        return None
    if not tests:
        return None
    modules = imported_modules([*tests, setup])
    return Task(entry_point or called_function(tests), tests, setup, modules)


def _script(row: Mapping[str, Any], place: str) -> Task:
    inputs: list[str] = []
    outputs: list[str] = []
    for name in _INPUTS:
        for given, wanted in _pairs(row.get(name), name, place):
            inputs.append(given)
            outputs.append(wanted)
    if not inputs:
        raise UserError(f"{place} has no tests: {', '.join(_INPUTS)} are empty. Write some, or drop the row.")
    return Task(inputs=tuple(inputs), outputs=tuple(outputs))


def _pairs(value: Any, name: str, place: str) -> list[tuple[str, str]]:
    """Inputs and outputs of a struct of two lists, or of a list of structs."""
    if not value:
        return []
    try:
        if isinstance(value, Mapping):
            pairs = list(zip(value["input"] or [], value["output"] or [], strict=True))
        else:
            pairs = [(entry["input"], entry["output"]) for entry in value]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(_no_pairs(value, name, place)) from error
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise UserError(_no_pairs(value, name, place))
    return pairs


def _no_pairs(value: Any, name: str, place: str) -> str:
    return (
        f"{place}: `{name}` is {value!r:.60}; write {{input: [...], output: [...]}}, two lists of texts of one length."
    )


def _texts(value: Any, name: str, place: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{place}: `{name}` is {value!r:.60}; write a list of texts, e.g. [assert f(1) == 2].")
    return tuple(text for text in value if text.strip())

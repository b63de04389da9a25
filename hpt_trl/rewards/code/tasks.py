"""What a row asks a program to do, by the columns that the data sets have.

| Columns | As in | Tests |
|---|---|---|
| `public_tests`, `private_tests`, `generated_tests` | CodeContests | inputs and the outputs that belong to them |
| `test_list`, `test_setup_code`, `test_imports` | MBPP | assertions |
| `test`, `entry_point` | HumanEval | a function `check(candidate)`, by its assertions, or a `unittest.TestCase` |
| `tests` | your own | assertions or functions `test…`, as a list or as one text |

MBPP's `challenge_test_list` is not run, for no published figure counts it; `column_mapping: {tests:
challenge_test_list}` does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpt_trl.data.reading.places import ROW
from hpt_trl.errors import UserError
from hpt_trl.rewards.code.comparing import same_output
from hpt_trl.rewards.code.extraction import extract_code
from hpt_trl.rewards.code.reach import NotRun
from hpt_trl.rewards.code.splitting import (
    called_function,
    checked_function,
    imported_modules,
    split_tests,
    whole_tests,
)
from hpt_trl.rewards.sandbox.program import Outcome, Program, Run

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
        imports: modules that tests and setup import.
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

    def kept(self, number: int, run: Run) -> Run:
        """A run of a script without what it wrote, but with whether it passed."""
        if run.passed is None and number < len(self.outputs):
            passed = run.status == "ended" and same_output(run.stdout, self.outputs[number])
            return replace(run, stdout="", stderr="", passed=passed)
        return run

    def verdicts(self, outcome: Outcome) -> tuple[bool, ...]:
        """Whether the program passed each of the tests; those that were not reached it did not pass."""
        if self.inputs:
            passed = [bool(self.kept(number, run).passed) for number, run in enumerate(outcome.runs)]
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
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(
            f"{place}: the tests are no Python: {error.msg}: {(error.text or '').strip()!r:.80}; write assertions."
        ) from error
    except NotRun as error:
        raise UserError(f"{place}: {error}") from error
    except (ValueError, MemoryError, RecursionError) as error:
        raise UserError(
            f"{place}: the tests cannot be read as Python, as they hold a null byte or are nested too deeply "
            f"({type(error).__name__}); write shorter assertions."
        ) from error
    if task is None:
        raise UserError(
            f"{place} has no tests. Write some in one of these columns, or drop the row: {', '.join(TEST_COLUMNS)}."
        )
    return task


def _function(row: Mapping[str, Any], place: str) -> Task | None:
    entry_point, setup = _entry_point(row, place), ""
    if row.get("test_list"):
        tests = whole_tests(_texts(row["test_list"], "test_list", place))
        parts = row.get("test_imports") or []
        imports = [parts] if isinstance(parts, str) else _texts(parts, "test_imports", place)
        code = row.get("test_setup_code") or ""
        if not isinstance(code, str):
            raise UserError(f"{place}: `test_setup_code` is {code!r:.60}; write Python, a text.")
        setup = "\n".join([*imports, code]).strip()
    elif row.get("test"):
        if not isinstance(row["test"], str):
            raise UserError(
                f"{place}: `test` is {row['test']!r:.60}; write the source of a function `check(candidate)`."
            )
        if entry_point is None:
            raise UserError(
                f"{place}: `test` needs the column `entry_point`, the name of the function that is tested; it is None."
            )
        tests = split_tests(row["test"], entry_point)
    elif isinstance(given := row.get("tests"), str):
        entry_point = entry_point or checked_function(given)
        tests = split_tests(given, entry_point)
    elif given:
        tests = whole_tests(_texts(given, "tests", place))
    else:
        return None
    if not tests:
        return None
    modules = imported_modules([*tests, setup])
    return Task(entry_point or called_function(tests, setup), tests, setup, modules)


def _entry_point(row: Mapping[str, Any], place: str) -> str | None:
    name = row.get("entry_point")
    if name in (None, ""):
        return None
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f"{place}: `entry_point` is {name!r:.60}; write the name of the function that is tested.")
    return name


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

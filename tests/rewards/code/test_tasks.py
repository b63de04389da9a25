"""The tests of rows, and HumanEval's own solutions on them."""

import ast
import gzip
import json
import random
import re
import sys
from pathlib import Path

import pytest

from hpt_trl.errors import UserError
from hpt_trl.rewards.code.comparing import same_output
from hpt_trl.rewards.code.splitting import called_function, split_tests
from hpt_trl.rewards.code.tasks import Task, task_of
from hpt_trl.rewards.sandbox.program import Outcome, Program, Run, TestResult
from hpt_trl.rewards.sandbox.sandbox import Sandbox

HUMANEVAL = Path(__file__).parents[3].parent / "shared" / "data" / "humaneval.jsonl.gz"
MBPP = {
    "text": "Write a function to find the longest chain.",
    "test_list": ["assert longest([Pair(1, 2), Pair(3, 4)]) == 2", "assert set(longest.__name__) >= {'l'}"],
    "test_setup_code": "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b",
    "test_imports": ["import math"],
    "challenge_test_list": ["assert longest([]) == 'never run'"],
}
CODE_CONTESTS = {
    "public_tests": {"input": ["1\n"], "output": ["2\n"]},
    "private_tests": [{"input": "2\n", "output": "3"}],
    "generated_tests": {"input": [], "output": []},
}


def test_rows_are_told_by_their_columns():
    mbpp = task_of(MBPP, "row 1")
    assert mbpp.entry_point == "longest" and len(mbpp) == 2 and mbpp.imports == ("math",)
    imports = task_of({"tests": ["import os.path as p\nfrom math import inf\nassert f(1)"]}, "row 1").imports
    assert imports == ("math", "math.inf", "os.path")
    assert mbpp.setup.startswith("import math\nclass Pair") and mbpp.tests == tuple(MBPP["test_list"])
    contests = task_of(CODE_CONTESTS, "row 1")
    assert contests.entry_point is None and (contests.inputs, contests.outputs) == (("1\n", "2\n"), ("2\n", "3"))
    human = task_of({"test": "def check(candidate):\n    assert candidate(1) == 2\n", "entry_point": "f"}, "row 1")
    assert human.entry_point == "f" and len(human) == 1
    plain = task_of({"tests": ["assert f(1) == 2", "assert f(2) == 3", ""], "test_list": None}, "row 1")
    assert plain.entry_point == "f" and len(plain) == 2
    assert len(task_of({"tests": "x = 1\nassert f(x) == 2\nassert f(2)"}, "row 1")) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "data.jsonl, line 3 has no tests. Write some in one of these columns"),
        ({"tests": []}, "has no tests"),
        ({"tests": "   "}, "has no tests"),
        ({"test_list": [], "test": None}, "has no tests"),
        ({"public_tests": {"input": [], "output": []}}, "has no tests"),
        ({"tests": "assert f(1"}, "no Python: .* write assertions"),
        ({"tests": ["assert f(1) ="]}, "no Python"),
        ({"test": "def check(candidate):\n    pass"}, "needs the column `entry_point`.*None"),
        ({"test": "def check(candidate):\n    pass", "entry_point": "a b"}, "`entry_point` is 'a b'; write the name"),
        ({"tests": ["assert f(1)"], "entry_point": 5}, "`entry_point` is 5; write the name"),
        ({"test_list": ["assert f(1)"], "entry_point": ["f"]}, r"`entry_point` is \['f'\]; write the name"),
        ({"tests": f"assert f({'-' * 9000}1)"}, r"cannot be read as Python.*too deeply \(MemoryError\)"),
        ({"tests": ["assert f('\0')"]}, "null byte"),
        ({"test_list": ["assert f(1)"], "test_setup_code": ["x = 1"]}, r"`test_setup_code` is \['x = 1'\]"),
        ({"test_list": ["assert f(1)"], "test_imports": 5}, "`test_imports` is 5"),
        ({"test_list": ["assert f(1)"], "test_setup_code": "x ="}, "no Python"),
        ({"tests": ["import math", "x = 1"]}, "has no tests"),
        ({"tests": "def eq(a, b):\n    assert a == b\n"}, "`eq` in line 1 of the tests has assertions, but nothing"),
        ({"tests": ["def eq(a, b):\n    assert a == b\n"]}, "`eq` in line 1 .*every program would pass"),
        ({"tests": "def run():\n    assert f(1)\nif __name__ == '__main__':\n    run()"}, "`run` in line 1 "),
        ({"tests": "def test_a(tmp_path):\n    assert f(1)"}, "`test_a` in line 1 .*without arguments"),
        ({"tests": "assert f(1)\nasync def test_a():\n    assert f(1)"}, "`test_a` in line 2 .*without arguments"),
        ({"tests": "class TestF:\n    def test_a(self):\n        assert f(1)"}, "`TestF` .*is no unittest.TestCase"),
        (
            {"tests": "def check(candidate):\n    assert candidate(1) == 2"},
            "name of the function in the column `entry_p",
        ),
        ({"test": "def check(candidate):\n    assert True", "entry_point": "f"}, "`check` asserts nothing"),
        (
            {"test": "def check(candidate):\n    def case():\n        assert candidate(1)", "entry_point": "f"},
            "`case` in line 2 of the tests has assertions, but nothing calls it",
        ),
        ({"test": ["assert 1"], "entry_point": "f"}, "write the source of a function `check"),
        ({"tests": [1, 2]}, "write a list of texts"),
        ({"test_list": "assert f(1)"}, "write a list of texts"),
        ({"public_tests": {"input": ["1"], "output": []}}, "`public_tests` is .*two lists of texts of one length"),
        ({"private_tests": [{"input": "1"}]}, "`private_tests` is"),
        ({"generated_tests": {"input": [1], "output": [2]}}, "`generated_tests` is"),
    ],
)
def test_a_row_without_tests_is_named(row, message):
    with pytest.raises(UserError, match=message) as caught:
        task_of(row, "data.jsonl, line 3")
    assert str(caught.value).startswith("data.jsonl, line 3")


CHECK = '''
METADATA = {"author": "x"}

def near(a, b):
    return abs(a - b) < 1e-6

def check(candidate):
    """Checks."""
    assert True, "good for debugging"
    import math

    limit = 3
    # what is multiplied
    assert candidate(1) == 2
    for number in range(limit):
        assert near(candidate(number), 2 * number), """
at the margin"""
    values = [candidate(number)
              for number in range(limit)]
    assert values == [0, 2, 4]
    assert True
'''


def test_a_check_is_split_into_its_assertions():
    tests = split_tests(CHECK, "f")
    assert len(tests) == 3 and all(ast.parse(test) for test in tests)
    names: dict = {"f": lambda x: 2 * x}
    for test in tests:
        exec(test, names)
    verdicts = []
    names = {"f": lambda x: 2 * x if x != 2 else 5}
    for test in tests:
        try:
            exec(test, names)
            verdicts.append(True)
        except AssertionError:
            verdicts.append(False)
    assert verdicts == [True, False, False]


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def check(f):\n    if not f:\n        return\n    assert f(1)\n    assert f(2)", 1),
        ("def check(candidate):\n    assert candidate(1); assert candidate(2)", 1),
        ("def check(candidate, other=1):\n    assert candidate(1)\n    assert candidate(2)", 1),
        ("def check(candidate):\n    for x in (1, 2):\n        verify(candidate(x))", 1),
        ("def check(candidate):\n    assert candidate(1)\n    verify(candidate(2))", 2),
        (
            "def check(candidate):\n    def eq(a, b):\n        assert a == b\n    eq(candidate(1), 2)\n    assert f(2)",
            1,
        ),
        ("def check(candidate):\n    n = 0\n    def up():\n        nonlocal n\n        n += 1\n    assert f(1)", 1),
        ("def check(candidate):\n    # a\u2028b\n    assert candidate(1)\n    assert candidate(2)", 2),
        ("def check(candidate):\r\n    assert candidate(1) == '\x0c\x0b'\r    assert candidate(2)\r\n", 2),
        ("assert f(1)\nprint('passed')\ndef f2():\n    assert f(1)\n", 1),
        ("def eq(a, b):\n    assert a == b\neq(f(1), 2)\neq(f(2), 3)", 1),
        ("def test_a():\n    assert f(1)\nx = 1\ndef test_b():\n    assert f(x)\nprint(x)", 2),
        ("def test_a():\n    assert f(1)\ntest_a()\nassert f(2)", 1),
        ("def test_x(a):\n    assert a\ndef test_a():\n    test_x(f(1))\ndef test_b():\n    test_x(f(2))", 2),
        ("def test_a():\n    assert f(1)\ndef run():\n    test_a()\nif __name__ == '__main__':\n    run()", 1),
        ("assert f(1)\nassert f(2)\n", 2),
        ("import math\nx = f(1)\n\nassert x\n", 1),
        ("pass\n", 0),
    ],
)
def test_what_cannot_be_split_stays_whole(source, count):
    tests = split_tests(source, "f")
    assert len(tests) == count and all(ast.parse(test) for test in tests)


def test_the_function_that_tests_call():
    assert called_function(["assert set(similar((3, 4))) == {4}"]) == "similar"
    assert called_function(["assert sum(10, 15) == 6"]) == "sum"
    assert called_function(["x = 1", "assert x.y() == f(1)"]) == "f"
    assert called_function(["assert True"]) is None
    # What the tests define or import themselves is not asked for.
    assert called_function(["def eq(a):\n    assert f(a)\neq(1)"]) == "f"
    assert called_function(["assert Counter(f('ab')) == Counter('ba')"], "from collections import Counter") == "f"


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("1  2 \r\n3\n\n\n", "1 2\n3\n", True),
        ("1 2 3", "1 2\n3", False),
        ("1\n\n2", "1\n2", False),
        ("", "\n", True),
        ("YES", "Yes", False),
        ("1.0", "1", False),
    ],
)
def test_outputs_are_compared_line_by_line(given, expected, same):
    assert same_output(given, expected) is same


def test_verdicts_of_outcomes():
    task = Task(inputs=("1", "2", "3"), outputs=("a", "b", "c"))
    runs = (Run("ended", 0, "a \n"), Run("error", 1, "b"))
    assert task.verdicts(Outcome("timeout", 1.0, runs)) == (True, False, False)
    # Also once nothing is kept of what they wrote.
    runs = tuple(task.kept(number, run) for number, run in enumerate(runs))
    assert [run.stdout for run in runs] == ["", ""] and task.verdicts(Outcome("timeout", 1.0, runs))[0]
    empty = Task(inputs=("1",), outputs=("",))
    assert empty.verdicts(Outcome("ended", 1.0, (empty.kept(0, Run("ended", 0, "a")),))) == (False,)
    task = Task("f", ("assert f(1)", "assert f(2)"))
    assert task.verdicts(Outcome("timeout", 1.0, results=(TestResult(True),))) == (True, False)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    if sys.platform != "linux":
        pytest.skip("there is no sandbox but on Linux")
    return Sandbox()


def passes(sandbox: Sandbox, task: Task, completion: str, prompt: str = "") -> list[bool]:
    return list(task.verdicts(sandbox.run(task.program(completion, prompt))))


def test_mbpp_and_code_contests_are_run(sandbox):
    right = "```python\ndef longest(pairs):\n    return len([pair.a for pair in pairs])\n```"
    assert passes(sandbox, task_of(MBPP, "row 1"), right) == [True, True]
    assert passes(sandbox, task_of(MBPP, "row 1"), "def longest(pairs):\n    return 1") == [False, True]
    contests = task_of(CODE_CONTESTS, "row 1")
    assert passes(sandbox, contests, "```python\nprint(int(input()) + 1)\n```") == [True, True]
    assert passes(sandbox, contests, "print(2)") == [True, False]
    assert passes(sandbox, contests, "print(int(input()) + 1)\nexit(1)") == [False, False]
    summing = task_of({"test_list": ["assert sum(10, 15) == 6"]}, "row 1")
    assert passes(sandbox, summing, "def sum(a, b):\n    return 6") == [True]


NAMED = """
import unittest
from unittest import TestCase

def test_even():
    assert test_value(2) == 4

def test_value(x):
    return f(x)

class Base(TestCase):
    @classmethod
    def setUpClass(cls):
        cls.two = 2

    def setUp(self):
        self.three = self.two + 1

    def test_odd(self):
        self.assertEqual(f(self.three), nine())

class More(Base):
    def test_zero(self):
        with self.subTest("zero"):
            self.assertEqual(f(0), 0)

def nine():
    return 9

unittest.TextTestRunner().run(unittest.TestSuite([More("test_zero")]))
if __name__ == "__main__":
    test_even()
"""
OWN = "def check(c):\n    def eq(a, b):\n        assert a == b\n    eq(c(2), 4)\n    eq(c(3), 9)"


def test_tests_with_names_are_run_one_by_one(sandbox):
    """As pytest and unittest find them, of which the second class has those of the first."""
    cases = [
        ({"tests": NAMED}, [True, False, False, True]),
        ({"test": NAMED, "entry_point": "f"}, [True, False, False, True]),
        # A text of a list is one test; what only defines something belongs to the next.
        ({"tests": ["import math", NAMED, "assert f(2) == 4"]}, [False, True]),
        ({"tests": "def check(c):\n    assert c(2) == 4\n    assert c(3) == 9\ncheck(f)\n"}, [True, False]),
        ({"test": OWN, "entry_point": "f"}, [False]),
    ]
    tasks = [(task_of(row, "row 1"), of_wrong) for row, of_wrong in cases]
    right, wrong = "def f(x):\n    return x * x", "def f(x):\n    return 2 * x"
    outcomes = iter(sandbox.run_all([task.program(code) for task, _ in tasks for code in (right, wrong, "")]))
    faking = "import unittest\nunittest.TestCase.assertEqual = lambda *_: None\ndef f(x):\n    return 7"
    assert passes(sandbox, tasks[0][0], faking) == [False] * 4
    for task, of_wrong in tasks:
        assert task.entry_point == "f"
        for expected in ([True] * len(of_wrong), of_wrong, [False] * len(of_wrong)):
            outcome = next(outcomes)
            assert list(task.verdicts(outcome)) == expected, (task, outcome)


def test_what_is_expected_of_a_script_is_not_in_the_sandbox(sandbox):
    code = "import sys, glob\nprint(sys.argv, sys.stdin.read())\nprint([open(f).read() for f in glob.glob('/tmp/*')])"
    task = Task(inputs=("in",), outputs=("a secret output",))
    program = task.program(code)
    assert "secret" not in repr(program)
    assert passes(sandbox, task, code) == [False]


humaneval = pytest.mark.skipif(not HUMANEVAL.exists(), reason=f"HumanEval's problems are not at {HUMANEVAL}")


@pytest.fixture(scope="module")
def problems() -> list[tuple[dict, Task]]:
    with gzip.open(HUMANEVAL, "rt") as file:
        rows = [json.loads(line) for line in file]
    return [(row, task_of(row, row["task_id"])) for row in rows]


def solved(sandbox: Sandbox, problems: list, completion_of) -> list[str]:
    programs = [task.program(completion_of(row), row["prompt"]) for row, task in problems]
    outcomes = sandbox.run_all(programs)
    return [
        row["task_id"] for (row, task), outcome in zip(problems, outcomes, strict=True) if all(task.verdicts(outcome))
    ]


@humaneval
def test_all_canonical_solutions_pass(sandbox, problems):
    assert len(problems) == 164 and sum(len(task) for _, task in problems) > 1000
    more = "\n\ndef main():\n    return 1 / 0\n\nprint(main())\n"
    assert len(solved(sandbox, problems, lambda row: row["canonical_solution"] + more)) == 164


@humaneval
def test_answers_in_every_form_pass(sandbox, problems):
    """A few problems whose prompts have helpers, constants and imports, in the forms of chats."""
    chosen = [pair for pair in problems if pair[0]["task_id"] in {f"HumanEval/{n}" for n in (10, 32, 38, 50, 64, 115)}]

    def alone(row: dict) -> str:
        start = re.search(rf"^def {row['entry_point']}\b", row["prompt"], re.M).start()
        return f"Sure!\n```python\n{row['prompt'][start:]}{row['canonical_solution']}\nprint(1 / 0)\n```\nDone."

    forms = [
        lambda row: f"It's so:\n\n```python\n{row['prompt']}{row['canonical_solution']}```\nThat's all.",
        alone,
        lambda row: f"{row['prompt']}{row['canonical_solution']}\nThis isn't hard.",
        lambda row: f"```python\n{row['canonical_solution']}```",
        lambda row: f"{row['canonical_solution']}```\n\nIt's right.",
    ]
    for form in forms:
        assert len(solved(sandbox, chosen, form)) == 6


@humaneval
@pytest.mark.parametrize("body", ["    pass\n", "    return [12345]\n"])
def test_no_wrong_solution_passes(sandbox, problems, body):
    assert solved(sandbox, problems, lambda row: body) == []


class Mutation(ast.NodeTransformer):
    """Changes one comparison, operator or number of a solution."""

    def __init__(self, number: int) -> None:
        self.left = number

    def generic_visit(self, node: ast.AST) -> ast.AST:
        node = super().generic_visit(node)
        swaps = {
            ast.Lt: ast.LtE,
            ast.Gt: ast.GtE,
            ast.Eq: ast.NotEq,
            ast.LtE: ast.Lt,
            ast.GtE: ast.Gt,
            ast.In: ast.NotIn,
        }
        changed = None
        if isinstance(node, ast.Compare) and type(node.ops[0]) in swaps:
            changed = ast.Compare(node.left, [swaps[type(node.ops[0])](), *node.ops[1:]], node.comparators)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            changed = ast.BinOp(node.left, ast.Sub() if isinstance(node.op, ast.Add) else ast.Add(), node.right)
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            changed = ast.Constant(node.value + 1)
        elif isinstance(node, ast.Return) and node.value is not None:
            changed = ast.Return(ast.Tuple([node.value], ast.Load()))
        if changed is not None:
            self.left -= 1
            if self.left == 0:
                return changed
        return node


@humaneval
def test_split_tests_agree_with_the_whole_check_on_mutated_solutions(sandbox, problems):
    """All assertions pass exactly where HumanEval's own `check` does, on solutions that are nearly right."""
    programs = []
    for row, task in problems:
        tree = ast.parse(row["prompt"] + row["canonical_solution"])
        mutated = ast.unparse(
            ast.fix_missing_locations(Mutation(random.Random(row["task_id"]).randint(1, 4)).visit(tree))
        )
        whole = f"import random\nrandom.seed(0)\n{row['test']}\ncheck({row['entry_point']})"
        programs.append(Program(mutated, tests=(*task.tests, whole), imports=task.imports, keeps=task.entry_point))
    agree = wrong = 0
    for program, outcome in zip(programs, sandbox.run_all(programs), strict=True):
        passed = [result.passed for result in outcome.results]
        if len(passed) < len(program.tests):
            # A loop without end, in one of the assertions.
            assert len(passed) < len(program.tests) - 1 or not all(passed), (program, outcome)
            wrong += 1
            continue
        assert all(passed[:-1]) == passed[-1], (program, outcome)
        agree += 1
        wrong += not passed[-1]
    assert agree > 150 and wrong > 100

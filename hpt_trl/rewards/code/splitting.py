"""The tests in a text of Python, each by itself, so that a failed one does not hide those after it."""

import ast
import builtins
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from hpt_trl.rewards.code.lines import normalised
from hpt_trl.rewards.code.reach import NotRun, Reach, calls_of_tests, is_assertion, own_nodes, unrun_assertion


def split_tests(source: str, entry_point: str | None) -> tuple[str, ...]:
    """Splits the function `check(candidate)` of a text, or without one the text's own statements.

    Each test is one statement that asserts something, together with those before it that assert nothing; what is
    assigned in one test stands in the next. Functions `test…` that nothing calls, and the methods of a
    `unittest.TestCase`, are a test each. An assertion of a constant, as HumanEval has many, is no test.

    Args:
        source: of the tests.
        entry_point: the function that is handed to `check`.

    Raises:
        SyntaxError: the source is no Python.
        NotRun: its assertions would not be run.
    """
    source = normalised(source)
    tree = ast.parse(source)
    check = _check(tree)
    if check is None:
        tests = tuple(
            _groups(
                source,
                tree.body,
                Reach(tree.body),
                [call for found in calls_of_tests(tree.body).values() for call in found],
            )
        )
        if not tests and (unrun := unrun_assertion(tree.body)):
            raise unrun
        return tests
    reach = Reach(tree.body)
    if entry_point is None:
        raise NotRun("the tests define `check(candidate)`; write the name of the function in the column `entry_point`.")
    if not reach.says(check.body):
        raise unrun_assertion(check.body) or NotRun("`check` asserts nothing, so that every program would pass.")
    whole = (f"{source}\ncheck({entry_point})",)
    if not _is_flat(check):
        return whole
    # Beside `check` there may be metadata, functions that it calls, and a call of itself.
    others = [node for node in tree.body if node is not check and _given_to_check(node) is None]
    before = "\n".join(ast.unparse(node) for node in others)
    first = f"{before}\n{check.args.args[0].arg} = {entry_point}\n"
    groups = [f"if True:\n{group}" for group in _groups(source, check.body, reach)]
    return (first + groups[0], *groups[1:]) if groups else whole


def whole_tests(sources: Sequence[str]) -> tuple[str, ...]:
    """Tests that are texts of their own; those that only define something belong to the next one.

    Raises:
        SyntaxError: a source is no Python.
        NotRun: no assertion would be run.
    """
    trees = [(source, ast.parse(source).body) for source in sources]
    statements = [statement for _, body in trees for statement in body]
    reach, calls = Reach(statements), calls_of_tests(statements)
    tests, waiting = [], ""
    for source, body in trees:
        lines = [source, *(call for statement in body for call in calls.get(statement, []))]
        waiting += "\n".join(lines)
        if len(lines) > 1 or reach.says(body):
            tests.append(waiting)
            waiting = ""
        else:
            waiting += "\n"
    if not tests and (unrun := unrun_assertion(statements)):
        raise unrun
    return tuple(tests)


def checked_function(source: str) -> str | None:
    """The function that a text of tests hands to its own `check`; None where it has no such call.

    Raises:
        SyntaxError: the source is no Python.
    """
    tree = ast.parse(source)
    given = [_given_to_check(node) for node in tree.body] if _check(tree) else []
    return next((name for name in given if name), None)


def called_function(tests: Sequence[str], setup: str = "") -> str | None:
    """The function that tests call, by the first of them: the outermost that is not a builtin one, else a builtin one.

    Args:
        setup: source that the tests need; what it or they define or import is not asked for.

    Raises:
        SyntaxError: a test is no Python.
    """
    known = {name for source in (setup, *tests) for name in _bound(ast.parse(source))}
    for test in tests:
        # In the order in which they stand.
        calls = [node for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Call)]
        names = [node.func.id for node in calls if isinstance(node.func, ast.Name) and node.func.id not in known]
        if names:
            return next((name for name in names if name not in vars(builtins)), names[0])
    return None


def imported_modules(sources: Iterable[str]) -> tuple[str, ...]:
    """The modules that sources import; of `from a import b` both `a` and `a.b`, which may be one.

    Raises:
        SyntaxError: a source is no Python.
    """
    found: set[str] = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names if alias.name != "*")}
    return tuple(sorted(found))


def _check(tree: ast.Module) -> ast.FunctionDef | None:
    return next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"), None)


def _given_to_check(node: ast.stmt) -> str | None:
    """What a statement `check(name)` names; empty for something else that is checked, None for another statement."""
    call = node.value if isinstance(node, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "check":
        return None
    return call.args[0].id if call.args and isinstance(call.args[0], ast.Name) else ""


def _bound(tree: ast.Module) -> Iterator[str]:
    """The names that a source defines or imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


def _is_flat(check: ast.FunctionDef) -> bool:
    """Whether the statements of a function mean the same outside of it, each on lines of its own."""
    arguments = check.args
    plain = len(arguments.args) == 1 and not (arguments.vararg or arguments.kwarg or arguments.kwonlyargs)
    inside = (ast.Return, ast.Yield, ast.YieldFrom, ast.Await)
    nodes = [node for statement in check.body for node in ast.walk(statement)]
    own = [node for statement in check.body for node in own_nodes(statement)]
    flat = not any(isinstance(node, inside) for node in own)
    # A function of its own may assert in its place, and what it shares with it would be no variable of a function.
    alone = not any(isinstance(node, ast.Nonlocal | ast.Global) for node in nodes)
    alone = alone and sum(map(is_assertion, nodes)) == sum(map(is_assertion, own))
    return plain and flat and alone and check.lineno < check.body[0].lineno and _on_own_lines(check.body)


def _on_own_lines(statements: Sequence[ast.stmt]) -> bool:
    return all((one.end_lineno or 0) < other.lineno for one, other in pairwise(statements))


def _groups(source: str, statements: Sequence[ast.stmt], reach: Reach, calls: Sequence[str] = ()) -> Iterator[str]:
    """The tests in the lines of a source.

    Args:
        calls: of tests that the statements define, what runs each; they come last, as they need all that is defined.
    """
    if not _on_own_lines(statements):
        if calls or reach.says(statements):
            yield "\n".join([source, *calls])
        return
    lines = source.split("\n")
    start = statements[0].lineno - 1 if statements else 0
    waiting = False
    for statement in statements:
        end = statement.end_lineno or statement.lineno
        if _asserts(statement):
            yield "\n".join(lines[start:end])
            start, waiting = end, False
        else:
            waiting = waiting or reach.says([statement])
    # Beside tests that have names what is left over may run them once more, with a runner that raises nothing.
    rest = lines[start : statements[-1].end_lineno] if statements else []
    if calls or waiting:
        yield "\n".join([*rest, *calls[:1]])
        yield from calls[1:]


def _asserts(statement: ast.stmt) -> bool:
    return any(map(is_assertion, own_nodes(statement)))

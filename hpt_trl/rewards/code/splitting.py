"""The tests in a text of Python, each by itself, so that a failed one does not hide those after it."""

import ast
import builtins
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

# Not those that a program has to change, and not what the tests are run with.
_NOT_RESTORED = ("sys", "builtins")


def split_tests(source: str, entry_point: str | None) -> tuple[str, ...]:
    """Splits the function `check(candidate)` of a text, or without one the text's own statements.

    Each test is one statement that asserts something, together with those before it that assert nothing; what is
    assigned in one test stands in the next. An assertion of a constant, as HumanEval has many, is no test.

    Args:
        source: of the tests.
        entry_point: the function that is handed to `check`; None calls none.

    Raises:
        SyntaxError: the source is no Python.
    """
    tree = ast.parse(source)
    check = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"), None)
    if check is None:
        return tuple(_groups(source, tree.body, ""))
    if entry_point is None or not _is_flat(check):
        return (source if entry_point is None else f"{source}\ncheck({entry_point})",)
    # Beside `check` there may be metadata and functions that it calls.
    others = [node for node in tree.body if node is not check]
    before = "\n".join(ast.unparse(node) for node in others)
    first = f"{before}\n{check.args.args[0].arg} = {entry_point}\n"
    groups = list(_groups(source, check.body, "if True:\n"))
    return (first + groups[0], *groups[1:]) if groups else (f"{source}\ncheck({entry_point})",)


def called_function(tests: Iterable[str]) -> str | None:
    """The function that tests call, by the first of them: the outermost that is not a builtin one, else a builtin one.

    Raises:
        SyntaxError: a test is no Python.
    """
    for test in tests:
        # In the order in which they stand.
        calls = [node for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Call)]
        names = [node.func.id for node in calls if isinstance(node.func, ast.Name)]
        if names:
            return next((name for name in names if name not in vars(builtins)), names[0])
    return None


def imported_modules(sources: Iterable[str]) -> tuple[str, ...]:
    """The modules of the standard library that sources import, by their first names.

    Raises:
        SyntaxError: a source is no Python.
    """
    found: set[str] = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return tuple(sorted(found & sys.stdlib_module_names - set(_NOT_RESTORED)))


def _is_flat(check: ast.FunctionDef) -> bool:
    """Whether the statements of a function mean the same outside of it, each on lines of its own."""
    arguments = check.args
    plain = len(arguments.args) == 1 and not (arguments.vararg or arguments.kwarg or arguments.kwonlyargs)
    inside = (ast.Return, ast.Yield, ast.YieldFrom, ast.Nonlocal, ast.Global, ast.Await)
    flat = not any(isinstance(node, inside) for statement in check.body for node in _own_nodes(statement))
    return plain and flat and check.lineno < check.body[0].lineno and _on_own_lines(check.body)


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a statement without those of functions inside of it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    yield node
    for inner in ast.iter_child_nodes(node):
        yield from _own_nodes(inner)


def _on_own_lines(statements: Sequence[ast.stmt]) -> bool:
    return all((one.end_lineno or 0) < other.lineno for one, other in pairwise(statements))


def _groups(source: str, statements: Sequence[ast.stmt], head: str) -> Iterator[str]:
    if not _on_own_lines(statements):
        yield source
        return
    lines = source.splitlines()
    start = statements[0].lineno - 1 if statements else 0
    waiting = False
    for statement in statements:
        end = statement.end_lineno or statement.lineno
        if _asserts(statement):
            yield head + "\n".join(lines[start:end])
            start, waiting = end, False
        else:
            waiting = waiting or not _is_idle(statement)
    if waiting:
        yield head + "\n".join(lines[start : statements[-1].end_lineno])


def _asserts(statement: ast.stmt) -> bool:
    return any(isinstance(node, ast.Assert) and not _is_constant(node) for node in ast.walk(statement))


def _is_constant(node: ast.Assert) -> bool:
    return isinstance(node.test, ast.Constant) and bool(node.test.value)


def _is_idle(statement: ast.stmt) -> bool:
    """Whether a statement says nothing about the program: a text, `pass`, an import, an assertion of a constant."""
    return (
        isinstance(statement, ast.Pass | ast.Import | ast.ImportFrom | ast.Assert)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        or (isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant | ast.Dict))
    )

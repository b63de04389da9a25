"""What of a source is run when its statements are: a function that nothing calls asserts nothing."""

import ast
import builtins
from collections.abc import Iterable, Iterator, Sequence

Function = ast.FunctionDef | ast.AsyncFunctionDef
# Methods that say nothing about a program, as in `unittest.main()` and `random.seed(0)`.
_SILENT = ("main", "seed")
_BASES = ("TestCase", "IsolatedAsyncioTestCase")


class NotRun(ValueError):
    """Tests that nothing runs; the message says which, and what to write instead."""


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a statement without those of functions inside of it, and of what only a script runs."""
    waiting = [node]
    while waiting:
        found = waiting.pop()
        if isinstance(found, Function | ast.Lambda) or _is_guard(found):
            continue
        yield found
        waiting.extend(ast.iter_child_nodes(found))


def is_assertion(node: ast.AST) -> bool:
    """Whether a node asserts something, which `assert True` does not."""
    return isinstance(node, ast.Assert) and not (isinstance(node.test, ast.Constant) and bool(node.test.value))


class Reach:
    """The definitions of a source, and what statements run by calling them.

    Args:
        statements: of the source, in which functions and classes of any depth are found.
    """

    def __init__(self, statements: Sequence[ast.stmt]) -> None:
        self.definitions: dict[str, list[ast.AST]] = {}
        for statement in statements:
            for node in ast.walk(statement):
                if isinstance(node, Function | ast.ClassDef):
                    self.definitions.setdefault(node.name, []).append(node)

    def nodes(self, statements: Iterable[ast.stmt]) -> Iterator[ast.AST]:
        """All nodes that are run, each function counting as called where its name is mentioned."""
        waiting: list[ast.AST] = [*statements]
        seen: set[str] = set()
        while waiting:
            for node in own_nodes(waiting.pop()):
                yield node
                name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
                if name in self.definitions and name not in seen:
                    seen.add(name)
                    waiting += [inner for found in self.definitions[name] for inner in _bodies(found)]

    def users(self, names: Iterable[str]) -> set[str]:
        """These names, and those of all definitions that mention one, by themselves or by others."""
        mentions: dict[str, set[str]] = {}
        for name, found in self.definitions.items():
            for node in (inner for definition in found for inner in ast.walk(definition)):
                if isinstance(node, ast.Name):
                    mentions.setdefault(node.id, set()).add(name)
        waiting = [*names]
        users = set(waiting)
        while waiting:
            more = mentions.get(waiting.pop(), set()) - users
            users |= more
            waiting += more
        return users

    def says(self, statements: Iterable[ast.stmt]) -> bool:
        """Whether statements may fail on a wrong program: they assert, raise, or call what is not defined here."""
        return any(self._says(node) for node in self.nodes(statements))

    def _says(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name):
                return called.id not in self.definitions and called.id not in vars(builtins)
            return not (isinstance(called, ast.Attribute) and called.attr in _SILENT)
        return is_assertion(node) or isinstance(node, ast.Raise)


def calls_of_tests(statements: Sequence[ast.stmt]) -> dict[ast.stmt, list[str]]:
    """The tests that a source has by their names, as pytest and unittest find them.

    Returns:
        Of each statement that defines some, what runs one: functions `test…` that nothing calls, and the methods
        `test…` of each `unittest.TestCase`, with those that set it up.

    Raises:
        NotRun: a test that nothing can call: it takes arguments, is a coroutine, or lies in a class of pytest's.
    """
    called = _called(statements)
    cases: dict[str, list[str]] = {}
    found: dict[ast.stmt, list[str]] = {}
    for node in statements:
        if isinstance(node, Function) and node.name.startswith("test") and node.name not in called:
            if isinstance(node, ast.AsyncFunctionDef) or _needs_arguments(node.args):
                raise _unrun(node, "cannot be called without arguments")
            found[node] = [f"{node.name}()"]
        elif isinstance(node, ast.ClassDef):
            bases = [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases]
            methods = [inner.name for inner in node.body if isinstance(inner, Function)]
            methods = [name for name in methods if name.startswith("test")]
            if any(base in _BASES or base in cases for base in bases):
                methods = list(dict.fromkeys([*(name for base in bases for name in cases.get(base, [])), *methods]))
                cases[node.name] = methods
                if methods:
                    run = f'__import__("unittest").TestSuite([{node.name}("{{}}")]).debug()'
                    found[node] = [run.format(name) for name in methods]
            elif methods and node.name.startswith("Test") and node.name not in called:
                raise _unrun(node, "is no unittest.TestCase")
    return found


def _called(statements: Sequence[ast.stmt]) -> set[str]:
    """The names that are used at the top level or by tests, but not only by themselves."""
    reach = Reach(statements)
    called = {node.id for node in reach.nodes(statements) if isinstance(node, ast.Name)}
    for node in statements:
        if isinstance(node, Function | ast.ClassDef) and node.name.lower().startswith("test"):
            used = {inner.id for inner in reach.nodes(_bodies(node)) if isinstance(inner, ast.Name)}
            called |= used - {node.name}
    return called


def unrun_assertion(statements: Sequence[ast.stmt]) -> NotRun | None:
    """What to say of statements that run no assertion, where there is one in a function or class; else None."""
    for statement in statements:
        if any(is_assertion(node) for node in ast.walk(statement)):
            return _unrun(statement, "has assertions, but nothing calls it")
    return None


def _unrun(node: ast.stmt, why: str) -> NotRun:
    name = getattr(node, "name", "")
    what = f"`{name}` in line {node.lineno} of the tests" if name else f"line {node.lineno} of the tests"
    return NotRun(
        f"{what} {why}, so that every program would pass. Write assertions at the top level, functions `test_…` "
        "without arguments, or a unittest.TestCase; or `check(candidate)` in the column `test`, and the name of the "
        "function in `entry_point`."
    )


def _bodies(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a function, or of a class with those of its methods."""
    for inner in getattr(node, "body", []):
        if isinstance(node, ast.ClassDef) and isinstance(inner, Function):
            yield from inner.body
        else:
            yield inner


def _needs_arguments(arguments: ast.arguments) -> bool:
    given = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    return given > 0 or None in arguments.kw_defaults


def _is_guard(node: ast.AST) -> bool:
    """Whether a node is `if __name__ == "__main__"`; tests are run as a module."""
    return isinstance(node, ast.If) and any(
        isinstance(inner, ast.Name) and inner.id == "__name__" for inner in ast.walk(node.test)
    )

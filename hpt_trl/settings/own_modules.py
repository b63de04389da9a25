"""The user's own files that are read where a dotted path is imported: its module, and what that imports in turn."""

import ast
import site
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hpt_trl.settings.imported import file_of


def own_files(path: str) -> list[Path]:
    """The files of a dotted path's module and of what it imports, as far as its text says; nothing is imported.

    Installed modules and those of this package are left out, whose versions are known, and what they import.

    Args:
        path: with a module before its last dot.
    """
    found: dict[Path, None] = {}
    waiting, seen = [path], set()
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        file = _file_of(name)
        if file is None or _is_installed(file):
            continue
        module = name.rpartition(".")[0]
        if "." in module:
            # The package is imported before what lies in it.
            waiting.append(module)
        if file not in found:
            found[file] = None
            package = module if file.name == "__init__.py" else module.rpartition(".")[0]
            waiting += _imports(file, package)
    return list(found)


def _file_of(name: str) -> Path | None:
    # Any word may follow `import` in a file that is not run.
    with suppress(ImportError, ValueError):
        return file_of(name)
    return None


def _imports(file: Path, package: str) -> Iterator[str]:
    """Dotted paths of what a file imports, each with a name after the module."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        # Whoever imports it is told.
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"{alias.name}.*" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            # What is named may be a module as well.
            yield from (name for alias in node.names for name in (f"{module}.{alias.name}", f"{module}.{alias.name}.*"))


def _is_installed(module: Path) -> bool:
    """Whether a module is an installed package's or this one's, whose versions are noted instead."""
    places = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    places += [*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parents[1])]
    return any(module.resolve().is_relative_to(Path(place).resolve()) for place in places)

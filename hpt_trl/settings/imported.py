"""What a dotted path in a recipe names."""

import difflib
import inspect
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError

_NOTHING = object()


def check_found(path: str, key: str) -> None:
    """Refuses a dotted path whose module is nowhere; modules that are there are not imported, their packages neither.

    Raises:
        UserError: as `imported` does.
    """
    _see_working_directory()
    if find_spec(path.partition(".")[0]) is None:
        imported(path, key)


def file_of(path: str) -> Path | None:
    """The file of the module that a dotted path begins with; None where there is none, or no dot.

    Packages above the module are imported, the module is not.
    """
    module_name = path.rpartition(".")[0]
    _see_working_directory()
    try:
        found = find_spec(module_name) if module_name else None
    # Whatever the user's packages raise is told where the function itself is imported.
    except Exception:
        return None
    return None if found is None or not found.has_location else Path(str(found.origin))


def imported(path: str, key: str) -> Any:
    """Imports what a dotted path names, from installed modules and from the working directory.

    Args:
        path: with a module before its last dot.
        key: of the recipe, which messages begin with.

    Raises:
        UserError: the module cannot be imported, or has nothing of that name.
    """
    module_name, _, name = path.rpartition(".")
    _see_working_directory()
    try:
        module = import_module(module_name)
        found = getattr(module, name, _NOTHING)
    # The user's module may raise anything while it is imported; if it left the process, nothing would be said.
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{key}: `{path}`: the module {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if found is _NOTHING:
        own = [one for one, value in vars(module).items() if inspect.isroutine(value) or inspect.isclass(value)]
        near = difflib.get_close_matches(name, own, n=1) or own[:5]
        raise UserError(
            f"{key}: `{path}`: {module_name} has no `{name}`" + (f"; it has {', '.join(near)}." if near else ".")
        )
    return found


def _see_working_directory() -> None:
    # A console script does not have the working directory on its path, `python -m` does.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())

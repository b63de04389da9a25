"""What a dotted path in a recipe names."""

import difflib
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError

_NOTHING = object()


# Folders of the recipe that is read, the first one first; the processes that this one starts see them too, and a recipe
# that is stored elsewhere names them in its block `env`.
MODULE_FOLDERS = "HPT_TRL_RECIPE_FOLDERS"
# All that were ever among them in this process.
_SEEN: set[str] = set()


def see_folders(folders: Iterable[str | Path]) -> None:
    """Has modules that lie in a recipe's folders found: before those of the working directory and installed ones.

    What was seen before is not any more: modules of another recipe may have the same names.
    """
    found = list(dict.fromkeys(map(os.path.abspath, folders)))
    _SEEN.update(found)
    os.environ[MODULE_FOLDERS] = os.pathsep.join(found)


@contextmanager
def seeing(folders: Iterable[str | Path] | None = None) -> Iterator[None]:
    """Inside, other folders are seen; after it those that were seen before.

    Args:
        folders: those to begin with; by default the same ones.
    """
    before = _folders()
    try:
        if folders is not None:
            see_folders(folders)
        yield
    finally:
        see_folders(before)


def folders_of_modules(paths: Iterable[str], folders: Iterable[str | Path]) -> list[str]:
    """Those of some folders in which the modules of dotted paths lie, in their order, as absolute paths."""
    names = {path.partition(".")[0] for path in paths if "." in path}
    places = dict.fromkeys(map(os.path.abspath, folders))
    return [folder for folder in places if any(_lies_in(folder, name) for name in names)]


def check_found(path: str, key: str) -> None:
    """Refuses a dotted path whose module is nowhere; modules that are there are not imported, their packages neither.

    Raises:
        UserError: as `imported` does.
    """
    name = path.partition(".")[0]
    _extend_path()
    # A program that is run as `__main__` has no spec.
    if not name or (name not in sys.modules and _folder_of(name) is None and find_spec(name) is None):
        imported(path, key)


def file_of(path: str) -> Path | None:
    """The file of the module in which a dotted path lies; None where it is not found. Nothing is imported."""
    parts = path.split(".")[:-1]
    if not parts or not all(parts):
        return None
    _extend_path()
    folder = _folder_of(parts[0])
    if folder is None:
        # A program that is run as `__main__` has none.
        spec = None if parts[0] == "__main__" else find_spec(parts[0])
        inside = None if spec is None else next(iter(spec.submodule_search_locations or []), None)
        folder = os.path.dirname(inside or ("" if spec is None else spec.origin or ""))
    place = Path(folder).joinpath(*parts)
    return next((file for file in (place.with_name(f"{place.name}.py"), place / "__init__.py") if file.is_file()), None)


def imported(path: str, key: str) -> Any:
    """Imports what a dotted path names: from the recipe's folder, else an installed module or the working directory.

    Args:
        path: with a module before its last dot.
        key: of the recipe, which messages begin with.

    Raises:
        UserError: the module cannot be imported, or has nothing of that name.
    """
    module_name, _, name = path.rpartition(".")
    try:
        _extend_path()
        _import_from_recipe(path.partition(".")[0])
        module = import_module(module_name)
        found = getattr(module, name, _NOTHING)
    # The user's module may raise anything while it is imported; if it left the process, nothing would be said.
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{key}: `{path[:200]}`: the module {module_name[:200]} cannot be imported: "
            f"{type(error).__name__}: {str(error)[:1000]}"
        ) from error
    if found is _NOTHING:
        public = {one: value for one, value in vars(module).items() if not one.startswith("_")}
        own = [one for one, value in public.items() if inspect.isroutine(value) or inspect.isclass(value)]
        near = difflib.get_close_matches(name, own, n=1) or own[:5]
        raise UserError(
            f"{key}: `{path}`: {module_name} has no `{name}`" + (f"; it has {', '.join(near)}." if near else ".")
        )
    return found


def _folders() -> list[str]:
    return [folder for folder in os.environ.get(MODULE_FOLDERS, "").split(os.pathsep) if folder]


def _extend_path() -> None:
    """Has what a user's module imports found beside it, after everything that is installed."""
    for folder in _folders():
        if folder not in sys.path:
            sys.path.append(folder)
    # A console script does not have the working directory on its path, `python -m` does.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())


def _folder_of(name: str) -> str | None:
    """The recipe's folder in which a module of this name lies."""
    return next((folder for folder in _folders() if _lies_in(folder, name)), None)


def _lies_in(folder: str, name: str) -> bool:
    return any(map(os.path.isfile, _files(folder, name)))


def _files(folder: str, name: str) -> tuple[str, str]:
    return os.path.join(folder, f"{name}.py"), os.path.join(folder, name, "__init__.py")


def _import_from_recipe(name: str) -> None:
    """Imports the module of this name that lies in a recipe's folder, where one does.

    It alone: with its folder in front of the path, files that happen to lie there would shadow libraries.
    """
    folder = _folder_of(name)
    if folder is None:
        return
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if loaded is not None:
        others = [file for other in [*_SEEN, os.getcwd()] if other != folder for file in _files(other, name)]
        if os.path.abspath(loaded) not in others:
            return
        # Of another recipe.
        for one in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
            del sys.modules[one]
    spec = PathFinder.find_spec(name, [folder])
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[name])
    except BaseException:
        del sys.modules[name]
        raise

"""The recipes that come with the package, by name."""

import difflib
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hpt_trl.errors import UserError
from hpt_trl.files import path_fault
from hpt_trl.settings.file import read_recipe_file, shown

# What an editor reads of a file's first line, before the schema's address.
FOR_EDITORS = "# yaml-language-server: $schema="


class RecipeSummary(NamedTuple):
    """One line of `hpt-trl list`."""

    recipe: str
    stage: str
    model: str
    data: str
    hardware: str


def recipes_folder() -> Path:
    """Returns the folder of the recipes that come with the package: of the wheel, or of the checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "_recipes"
    return shipped if shipped.is_dir() else package.parent / "recipes"


def recipe_name(path: Path) -> str:
    """Returns the name by which `find_recipe` finds a bundled recipe, e.g. `hybrid/smollm2-135m-gsm8k`."""
    return path.resolve().relative_to(recipes_folder()).with_suffix("").as_posix()


def bundled_recipes() -> list[Path]:
    """Returns every recipe that comes with the package: each YAML below the recipes folder, sorted by name."""
    return sorted(recipes_folder().rglob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Returns the file of a recipe, given as a path or as the name of a bundled one (`quickstart`).

    Raises:
        UserError: there is neither; the message gives the nearest bundled name.
    """
    if fault := path_fault(name):
        raise UserError(f"the recipe {name[:200]!r} {fault}; name a recipe's file, or a bundled one.")
    path = Path(name)
    if path.is_file():
        return path
    bundled = {recipe_name(recipe): recipe for recipe in bundled_recipes()}
    for asked in (name, name.removesuffix(".yaml").removesuffix(".yml")):
        if asked in bundled:
            return bundled[asked]
    if path.is_dir():
        raise UserError(f"{name} is a folder; name a recipe file in it.")
    short = {full.rpartition("/")[2]: full for full in bundled}
    near = difflib.get_close_matches(name, [*bundled, *short], n=1)
    meant = f" Did you mean `{short.get(near[0], near[0])}`?" if near else ""
    raise UserError(
        f"there is no recipe `{name[:200]}`: neither a file nor a bundled one.{meant} `hpt-trl list` shows all."
    )


def anchored(names: Any, folder: Path) -> Any:
    """Returns names of recipes with those that are files as absolute paths, wherever they are read later.

    Args:
        names: one or a list, as a recipe's key holds them; others are returned as they are.
        folder: that of the recipe that names them, from which paths count first, then from the working directory.
    """
    if isinstance(names, list):
        return [anchored(name, folder) for name in names]
    paths = (folder / names, Path(names)) if isinstance(names, str) and names else ()
    return next((str(path.resolve()) for path in paths if not path_fault(path) and path.is_file()), names)


def summarize(path: Path) -> RecipeSummary:
    """Reads what `hpt-trl list` shows of a bundled recipe; the hardware is its comment line `# Hardware: ...`."""
    file = read_recipe_file(path)
    values = {key: str(file.values.get(key, "-")) for key in ("stage", "model_name_or_path", "dataset_name")}
    return RecipeSummary(
        recipe_name(path),
        values["stage"],
        values["model_name_or_path"],
        values["dataset_name"],
        hardware_of(path) or "-",
    )


def hardware_of(path: Path) -> str:
    """Returns what a recipe's comment line `# Hardware: ...` asks for; empty where there is none."""
    found = re.search(r"^#\s*Hardware:\s*(.+?)\.?\s*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return found[1] if found else ""


def comes_from(name: str, path: Path) -> str:
    """Returns how something that a recipe names is made: a command, or where it stands; empty where nothing says.

    Args:
        name: a folder or file.
        path: the recipe, whose header may say it.
    """
    if recipe := _outputs(recipes_folder()).get(name.rstrip("/")):
        return f"hpt-trl run {recipe}"
    header = header_of(path)
    if download := re.search(rf"hf download \S+ --local-dir {re.escape(name)}(?=\s|$)", header):
        return download[0]
    return f"see the top of {shown(path)}" if re.search(rf"{re.escape(name)}(?=[\s,.:;)]|$)", header) else ""


@cache
def _outputs(folder: Path) -> dict[str, str]:
    """Output folder -> the bundled recipe that writes it; its line alone is read, for the sake of time."""
    found: dict[str, str] = {}
    for recipe in sorted(folder.rglob("*.yaml")):
        line = re.search(r"^output_dir: *(\S+)", recipe.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if line is not None:
            found.setdefault(line[1].rstrip("/"), recipe_name(recipe))
    return found


def profile_of_command(path: Path) -> tuple[str, int | None]:
    """Returns the profile with which the header's command starts the run, and its processes; empty for none."""
    header = header_of(path)
    found = re.search(r"(?:--accelerate |accelerate_configs/)(\w+)(?:\.yaml)?(?: --num_processes (\d+))?", header)
    return ("", None) if found is None else (found[1], None if found[2] is None else int(found[2]))


def header_of(path: Path) -> str:
    """Returns the comment lines of a recipe, without their marks; what is said to editors is none of them."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line.lstrip("# ") for line in lines if line.startswith("#") and not line.startswith(FOR_EDITORS))

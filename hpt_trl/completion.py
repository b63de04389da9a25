"""`hpt-trl completion SHELL`: the script by which a shell completes commands, flags, recipes and folders.

shtab writes it from the parser. The names of the bundled recipes stand in the script: a shell that asked this package
at each press of the key would have to wait.
"""

import argparse
from typing import Any

import shtab

from hpt_trl.recipes.bundled import bundled_recipes, recipe_name
from hpt_trl.recipes.profiles import profiles_folder

SHELLS = ("bash", "zsh", "fish")
# Arguments that name a recipe, those that name a folder, and options that name a file.
_RECIPES = ("recipe", "recipes")
_FOLDERS = ("output_dir", "folder", "folders", "pages", "index")
_FILES = ("--output", "--image")
# Of the words behind a recipe those that are written most; the recipe's keys are many more.
_KEYS = ("max_steps", "model_name_or_path", "overwrite", "resume_from_checkpoint", "num_processes", "json", "help")


def script(parser: argparse.ArgumentParser, shell: str, recipe_commands: tuple[str, ...]) -> str:
    """Return the completion script of a shell.

    Args:
        parser: The command line's, which gets what the script completes it with.
        shell: One of `SHELLS`.
        recipe_commands: Commands whose words behind the recipe are its keys.
    """
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    recipes = _choices("recipes", [recipe_name(path) for path in bundled_recipes()])
    profiles = _choices("profiles", sorted(path.stem for path in profiles_folder().glob("*.yaml")))
    for name, command in commands.choices.items():
        if name in recipe_commands:
            _completed(command.add_argument("--accelerate", help="how processes are started"), profiles)
            _completed(command.add_argument("--output_dir", help="folder of the run"), shtab.DIRECTORY)
            for key in _KEYS:
                if f"--{key}" not in command._option_string_actions:
                    command.add_argument(f"--{key}", help="a key of the recipe")
        for action in command._actions:
            if action.dest in _RECIPES:
                _completed(action, recipes)
            elif action.dest in _FOLDERS and not action.option_strings:
                _completed(action, shtab.DIRECTORY)
            elif set(_FILES) & set(action.option_strings) or action.dest == "file":
                _completed(action, shtab.FILE)
    return shtab.complete(parser, shell)


def _completed(action: Any, how: Any) -> None:
    action.complete = how


def _choices(kind: str, names: list[str]) -> dict[str, Any]:
    """How each shell completes one of the names; bash completes files as well."""
    function, words = f"_hpt_trl_{kind}", " ".join(names)
    bash = f'{function}() {{\n  compgen -W \'{words}\' -- "$1"\n  _shtab_compgen_files "$1"\n}}\n'
    return {
        "bash": function,
        "zsh": f"({words})",
        "fish": f"(string split ' ' '{words}')",
        "preamble": {"bash": bash},
    }

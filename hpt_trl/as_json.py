"""What commands print with `--json`: one value on stdout and nothing else; docs/json.md has the keys."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.files import valid_json
from hpt_trl.pipeline.reading import is_pipeline
from hpt_trl.pipeline.report_data import report_data
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.settings.file import read_recipe_file, split_overrides
from hpt_trl.settings.masking import masked_text


@contextmanager
def stdout_on_stderr() -> Iterator[None]:
    """Inside, all that is printed goes to stderr, also what processes print that are started."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def text(value: Any) -> str:
    """A value as JSON: numbers as numbers, what is no number as null, in ASCII."""
    return json.dumps(valid_json(value), indent=2, allow_nan=False)


def reported(folders: list[str]) -> Any:
    """What output folders hold: of one its value, of several a list in their order."""
    found = [report_data(folder) for folder in folders]
    return found[0] if len(found) == 1 else found


def results_of(recipe: str, overrides: list[str]) -> dict[str, Any]:
    """What a run of a recipe has left, as `report --json` has it.

    Args:
        recipe: Its file, or the name of a bundled one.
        overrides: The words of its command line.
    """
    # An evaluation may be named by its folder.
    if Path(recipe).is_dir():
        return report_data(recipe)
    given = split_overrides(overrides).get("output_dir")
    return report_data(given[0] if given else str(read_recipe_file(find_recipe(recipe)).values["output_dir"]))


def mistaken(error: UserError) -> dict[str, Any]:
    """The mistakes for which `check` refuses a recipe; of what names no key of a file, these are null."""
    return {
        "mistakes": [
            {
                "file": None if one.place is None else one.place.file,
                "line": None if one.place is None else one.place.line,
                "key": None if one.place is None else masked_text(one.place.key),
                "said": masked_text(one.said),
            }
            for one in error.every
        ]
    }


def checked(recipe: str, found: Any) -> dict[str, Any]:
    """What `check` has found.

    Args:
        found: What the check of the recipe, or of the pipeline, has returned.
    """
    if not is_pipeline(find_recipe(recipe)):
        from hpt_trl.planning.facts_data import facts_data

        return facts_data(found)
    plan, steps = found
    stages = [
        {
            "name": step.stage.name,
            "stage": step.stage.kind,
            "recipe": step.stage.recipe,
            "uses": step.stage.uses,
            "action": step.action.name.lower(),
            "reason": step.reason or None,
        }
        for step in steps
    ]
    return {
        "recipe": str(Path(plan.file.path)),
        "stage": "pipeline",
        "output_dir": str(plan.output_dir),
        "stages": stages,
    }

"""Recipes run from Python: in a notebook with curves that grow, elsewhere as on the command line."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt_trl.displays.console import Bars, printed_warnings
from hpt_trl.displays.words import with_trial, words_of
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.settings.file import read_recipe_file

if TYPE_CHECKING:
    from hpt_trl.displays.chain import Chain
    from hpt_trl.displays.output import Run


def run(recipe: str | Path, **settings: Any) -> "Run | Chain":
    """Runs a recipe, as `hpt-trl run RECIPE --key value ...` does, and returns what it left.

    Args:
        recipe: A YAML file, or the name of a bundled recipe.
        settings: Keys of the recipe as Python values; they stand above those of the file.

    Returns:
        The run read back from its output folder; of a pipeline its stages.

    Raises:
        UserError: a mistake in the recipe, its data, model or rewards.
    """
    path = find_recipe(str(recipe))
    settings = with_trial(str(recipe), settings)
    words, values = words_of(settings), read_recipe_file(path).values | settings
    if values.get("stage") == "pipeline":
        from hpt_trl.displays.chain import Chain
        from hpt_trl.pipeline.run import run as run_pipeline

        run_pipeline(path, words)
        return Chain(values["output_dir"])
    from hpt_trl.displays.output import Run
    from hpt_trl.runs.runner import run as run_recipe

    try:
        with _shown(str(recipe)) as live:
            run_recipe(str(recipe), words, live)
        found = Run(values["output_dir"])
        if live is not None:
            live.finish(found.results)
    finally:
        # The trainer lies in circles of references, with its optimizer.
        gc.collect()
    return found


@contextmanager
def _shown(title: str) -> Iterator[Any]:
    """In a notebook live curves; elsewhere None."""
    from hpt_trl.displays.live import LiveCurves
    from hpt_trl.displays.showing import in_notebook

    if not in_notebook():
        yield None
        return
    live = LiveCurves(title)
    with redirect_stderr(Bars(sys.stderr, live.say)), printed_warnings():
        yield live

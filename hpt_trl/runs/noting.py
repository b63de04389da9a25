"""Mistakes of a run's settings that need neither model nor rows: noted together."""

from pathlib import Path

from hpt_trl.data.entries import every_name
from hpt_trl.data.generated import is_generated
from hpt_trl.data.names import looks_local
from hpt_trl.errors import Collector
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.runs.hub import settle_hub
from hpt_trl.runs.output_folder import check_output_folder
from hpt_trl.runs.trackers.choosing import settle_trackers
from hpt_trl.runs.warned import check_warnings


def note_settings(
    recipe: Recipe, mistakes: Collector, *, trained: bool = False, model_is_there: bool = True, planned: bool = False
) -> Path | None:
    """Notes what is wrong with trackers, output folder and the way to the Hub.

    Args:
        trained: it is an evaluation that a training names. model_is_there: whether the named model exists already.
        planned: no run is to start now.

    Returns:
        The checkpoint to resume from, None for a new run.
    """
    checkpoint = None
    if not trained:
        with mistakes.noted():
            settle_trackers(recipe)
        with mistakes.noted():
            check_warnings(recipe)
        with mistakes.noted():
            checkpoint = check_output_folder(recipe, planned=planned)
    with mistakes.noted():
        settle_hub(recipe, model_is_there=model_is_there)
    return checkpoint


def reads_here(recipe: Recipe) -> bool:
    """Whether the rows are made or lie on this machine."""
    names = every_name(recipe.arguments.dataset_name, recipe.arguments.datasets)
    return all(is_generated(name) or looks_local(name) for name in names)

"""Which trackers a recipe reports to, under which project and name; refused before a weight is loaded."""

from hpt_trl.recipes.recipe import Recipe
from hpt_trl.recipes.trackers import OTHERS, check_trackers, problem_of
from hpt_trl.runs.record import short_name

# The project of runs whose recipe names none; transformers would call it "huggingface".
PROJECT = "hpt-trl"


def settle_trackers(recipe: Recipe) -> None:
    """Checks `report_to` and writes what it comes to into the recipe's config, with a project and a name for the run.

    Raises:
        UserError: an unknown tracker, one whose package is missing, or one that would ask for a login.
    """
    config, stage = recipe.config, recipe.stage
    value = recipe.raw.get("report_to")
    names = check_trackers(value, recipe.sources, stage=stage.name, trains=stage.trains, packages=False)
    if others := [name for name in names if name in OTHERS]:
        from transformers.integrations import get_available_reporting_integrations

        if missing := [name for name in others if name not in get_available_reporting_integrations()]:
            raise recipe.error("report_to", f"the package that {missing[0]} needs is not installed.")
    if found := problem_of(names, space=recipe.setting("trackio_space_id")):
        name, why = found
        raise recipe.error("report_to", f"{name}: {why}")
    config.report_to = names
    config.run_name = recipe.raw.get("run_name") or short_name(recipe.path)
    config.project = recipe.raw.get("project") or PROJECT

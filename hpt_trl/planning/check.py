"""`hpt-trl check`: a recipe resolved without loading weights."""

from accelerate import PartialState

from hpt_trl.planning.facts import facts, facts_of_work
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.profiles import Profile
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.runs.preparation import prepare_recipe
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.quiet import quiet
from hpt_trl.runs.working import check_work


def check(name: str, overrides: list[str], profile: Profile | None = None) -> Prepared | Recipe:
    """Resolves a recipe without loading weights and prints what it comes to: `hpt-trl check NAME [--key value ...]`.

    Args:
        profile: how the processes are to be started; by default as this one was.

    Returns:
        What was checked: a recipe with its data, or by itself where its stage has neither model nor rows.

    Raises:
        UserError: the first mistake found.
    """
    with quiet():
        recipe = read_recipe(find_recipe(name), overrides, profile=profile)
        checked: Prepared | Recipe
        if recipe.stage.work is None:
            checked = prepare_recipe(recipe)
            found = facts(checked)
        else:
            check_work(recipe)
            checked, found = recipe, facts_of_work(recipe)
        if PartialState().is_main_process:
            print(found)
        return checked

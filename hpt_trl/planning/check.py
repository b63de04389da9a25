"""`hpt-trl check`: a recipe resolved without loading weights."""

from accelerate import PartialState

from hpt_trl.planning.facts import facts, facts_of_work
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.profiles import Profile
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.runs.preparation import prepare_recipe
from hpt_trl.runs.quiet import quiet
from hpt_trl.runs.working import check_work


def check(name: str, overrides: list[str], profile: Profile | None = None) -> None:
    """Resolves a recipe without loading weights and prints what it comes to: `hpt-trl check NAME [--key value ...]`.

    Args:
        profile: how the processes are to be started; by default as this one was.

    Raises:
        UserError: the first mistake found.
    """
    with quiet():
        recipe = read_recipe(find_recipe(name), overrides, profile=profile)
        if recipe.stage.work is None:
            found = facts(prepare_recipe(recipe))
        else:
            check_work(recipe)
            found = facts_of_work(recipe)
        if PartialState().is_main_process:
            print(found)

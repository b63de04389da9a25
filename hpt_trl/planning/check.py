"""`hpt-trl check`: a recipe resolved without loading weights."""

import os
import re
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from hpt_trl.errors import UserError
from hpt_trl.launching.options import LaunchOptions
from hpt_trl.planning.doctor import allowed_ranges, install_command
from hpt_trl.planning.facts import facts, facts_of_work, judges_of, shown_facts
from hpt_trl.planning.facts_data import Checked
from hpt_trl.planning.hub_needs import Hub
from hpt_trl.planning.measuring import measured_step
from hpt_trl.planning.need import Need
from hpt_trl.planning.needs import needs_of_values
from hpt_trl.planning.on_paper import facts_on_paper
from hpt_trl.recipes.bundled import find_recipe, hardware_of, profile_of_command
from hpt_trl.recipes.profiles import Profile, find_profile, launched_profile, read_profile
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.recipes.values import checked_values
from hpt_trl.runs.early import check_run
from hpt_trl.runs.output_folder import check_output_folder
from hpt_trl.runs.preparation import check_without_model, prepare_recipe
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.quiet import quiet
from hpt_trl.runs.working import check_work
from hpt_trl.settings.file import Sources, read_recipe_file, split_overrides


def check(name: str, overrides: list[str], profile: Profile | None = None) -> Checked:
    """Resolves a recipe without loading weights and prints what it comes to: `hpt-trl check NAME [--key value ...]`.

    What the recipe needs and this machine lacks is told at the end. Where it is the model or the rows, the rest is told
    by published sizes, for the processes that the recipe's header starts.

    Args:
        profile: how the processes are to be started; by default as this one was.

    Returns:
        What was found, and what the recipe needs that is not here.

    Raises:
        UserError: the mistakes found.
    """
    with quiet():
        path = find_recipe(name)
        check_run(name, overrides, None if profile is None else profile.num_processes, planned=True, live=True)
        values, declared = checked_values(Sources(read_recipe_file(path), split_overrides(overrides)))
        missing = [] if declared.works else [need for need in needs_of_values(values, path, Hub()) if not need.met]
        if not missing or not all(need.can_be_had for need in missing):
            text, checked = _here(read_recipe(path, overrides, profile=profile), [])
        elif not any(need.is_read for need in missing):
            # Packages alone are missing.
            profile = profile or launched_profile(int(os.environ.get("WORLD_SIZE", "1")))
            text, checked = _here(read_recipe(path, overrides, profile=profile), missing)
        else:
            lines = _facts_on_paper(path, overrides, profile, missing)
            text, checked = shown_facts([*lines, _missing(missing)]), Checked(lines, missing)
        if PartialState().is_main_process:
            print(text)
        return checked


def with_measured(checked: Checked, name: str, overrides: list[str], options: LaunchOptions) -> Checked:
    """Takes a step of a checked recipe, and prints what it took: `hpt-trl check NAME --measure`.

    Raises:
        UserError: the recipe trains nothing, something that it needs is not here, its rewards would ask a judge, or the
            step cannot be taken.
    """
    if not isinstance(checked.found, Prepared) or not checked.found.recipe.stage.trains:
        raise UserError("--measure: only a training whose model and rows are here has a step to measure; drop it.")
    if checked.missing:
        raise UserError(f"--measure: {checked.missing[0].what} is missing here; drop it, or see the list above.")
    if judges := judges_of(checked.found):
        raise UserError(
            f"--measure: {judges[0].model} at {judges[0].url} would judge the step's rollouts, which may cost money. "
            "Measure with a reward in its place that asks nobody: --reward_funcs answer_match."
        )
    measured = measured_step(name, overrides, options)
    print(shown_facts([("measured", measured.line())]))
    return replace(checked, measured=measured)


def _here(recipe: Recipe, missing: list[Need]) -> tuple[str, Checked]:
    """The facts of a recipe whose model and rows are at hand, and what else is missing."""
    found: Prepared | Recipe
    if recipe.stage.work is None:
        found = prepare_recipe(recipe, planned=True)
        text = facts(found)
    else:
        check_work(recipe, planned=True)
        found, text = recipe, facts_of_work(recipe)
    return text + (f"\n{shown_facts([_missing(missing)])}" if missing else ""), Checked(found, missing)


def _facts_on_paper(
    path: Path, overrides: list[str], profile: Profile | None, missing: list[Need]
) -> list[tuple[str, str]]:
    starts = ""
    if profile is None:
        profile, starts = _profile_of_header(path)
    recipe = read_recipe(path, overrides, profile=profile)
    absent = {need.what.partition(" ")[0] for need in missing}
    splits = None
    if "search" in absent:
        # Without its index nothing of an environment can be looked at.
        check_output_folder(recipe, planned=True)
    elif "data" in absent:
        recipe.stage.check(recipe)
        check_output_folder(recipe, planned=True)
    else:
        splits = check_without_model(recipe, planned=True)
    lines = facts_on_paper(recipe, splits)
    return [*lines[:2], ("processes", f"as the recipe's header starts them: {starts}"), *lines[2:]] if starts else lines


def _profile_of_header(path: Path) -> tuple[Profile, str]:
    """The processes that the header's command starts, and its options; one process without such."""
    name, count = profile_of_command(path)
    gpus = re.match(r"(\d+) GPUs?", hardware_of(path))
    if not name:
        return Profile("", None, "NO", 1), ""
    count = count or (int(gpus[1]) if gpus else None)
    profile = read_profile(find_profile(name), count)
    return profile, f"--accelerate {name} --num_processes {profile.num_processes}"


def _missing(missing: list[Need]) -> tuple[str, str]:
    """What this machine lacks, a line each with what helps."""
    ranges = allowed_ranges()
    lines = []
    for need in missing:
        remedy = install_command([need.package], ranges) if need.package else need.remedy
        lines.append(f"  {need.what}: {need.said}" + (f"\n      {remedy}" if remedy else ""))
    return ("missing here", "\n".join([f"{len(missing)} of what it needs", *lines]))

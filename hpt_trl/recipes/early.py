"""Mistakes of a recipe that show without torch, told before the seconds in which it is imported.

Each check is the one that the run itself makes later, by the same function.
"""

import os
from collections.abc import Collection
from typing import Any, NamedTuple

from hpt_trl.data.names import check_name, names_of
from hpt_trl.errors import UserError
from hpt_trl.models.folders import check_model_folder, check_model_name, is_adapter
from hpt_trl.recipes.batches import settle_batch
from hpt_trl.recipes.bundled import anchored, comes_from, find_recipe
from hpt_trl.recipes.declared import Declared, declared_in_file, rewards_in_file
from hpt_trl.recipes.values import checked_values, stage_of
from hpt_trl.rewards.names import is_path, unknown_reward
from hpt_trl.settings.file import Sources, read_recipe_file, split_overrides
from hpt_trl.settings.imported import check_found


class Checked(NamedTuple):
    """A recipe that has been checked: its values by key, what its stage declares, and where the values come from."""

    values: dict[str, Any]
    declared: Declared
    sources: Sources


def check_early(
    name: str, overrides: list[str], world_size: int | None = None, *, planned: bool = False
) -> Checked | None:
    """Checks what shows of a recipe without torch: keys, values, ranges, batches, and the files that it names.

    Args:
        name: a file, or the name of a bundled recipe.
        overrides: words of the command line.
        world_size: processes of the run; by default what the launcher says, else 1.
        planned: what the recipe's header or another recipe makes need not be there yet.

    Returns:
        What was checked; None where keys.json is of other versions than those installed, so that nothing was: the run
        itself checks everything.

    Raises:
        UserError: the first mistake.
    """
    sources = Sources(read_recipe_file(find_recipe(name)), split_overrides(overrides))
    processes = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
    return check_sources(sources, processes, _to_come(sources) if planned else ())


def _to_come(sources: Sources) -> set[str]:
    values = [sources.given(key) for key in ("model_name_or_path", "dataset_name")]
    models = sources.file.values.get("reward_model_name_or_path") or []
    values += models if isinstance(models, list) else [models]
    return {name for name in map(str, values) if name and comes_from(name, sources.file.path)}


def check_sources(
    sources: Sources, world_size: int, made: Collection[str] = (), *, has_model: bool = True
) -> Checked | None:
    """Checks a recipe that has been read; see `check_early`.

    Args:
        made: folders that will be there when the recipe runs.
        has_model: its model is one that it names.

    Raises:
        UserError: the first mistake.
    """
    if declared_in_file(stage_of(sources)) is None:
        return None
    values, declared = checked_values(sources)
    if declared.trains:
        settle_batch(dict(values), declared.keys, world_size, sources)
    _check_rewards(values, sources, made)
    if has_model and not declared.makes_model and not declared.works:
        _check_model(str(values["model_name_or_path"]), declared, made)
    if not declared.works and set(made).isdisjoint(names_of(values["dataset_name"])):
        given = {name: values.get(f"dataset_{name}") for name in ("options", "config")}
        check_name(values["dataset_name"], streaming=bool(values.get("dataset_streaming")), **given)
    if values.get("evaluations"):
        values["evaluations"] = anchored(values["evaluations"], sources.file.path.parent)
    for name in values.get("evaluations") or []:
        try:
            inner = Sources(read_recipe_file(find_recipe(name)), {"model_name_or_path": ["-"], "output_dir": ["-"]})
            check_sources(inner, world_size, made, has_model=False)
        except UserError as error:
            raise sources.error("evaluations", f"{name}: {error}") from error
    return Checked(values, declared, sources)


def _check_model(name: str, declared: Declared, made: Collection[str]) -> None:
    # Of an adapter that is measured, the model that it stands on has to be there.
    if name not in made and (declared.trains or not is_adapter(name)):
        check_model_name(name)


def _check_rewards(values: dict[str, Any], sources: Sources, made: Collection[str]) -> None:
    known = rewards_in_file() or []
    for name in values.get("reward_funcs") or []:
        if is_path(name):
            check_found(name, "reward_funcs")
        elif name not in known:
            raise unknown_reward(name, known)
    for name in values.get("reward_model_name_or_path") or []:
        key = "reward_model_name_or_path"
        try:
            if name not in made:
                check_model_folder(name, key=key, adapters=True)
        except UserError as error:
            raise sources.error(key, str(error).removeprefix(f"{key}: ")) from error

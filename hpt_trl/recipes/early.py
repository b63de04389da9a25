"""Mistakes of a recipe that show without torch, told together before the seconds in which it is imported.

The run itself tells them by the same functions, where they have not been told before.
"""

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from hpt_trl.data.entries import check_entries, every_name
from hpt_trl.data.names import check_name, names_of
from hpt_trl.errors import Collector, UserError
from hpt_trl.models.folders import check_model_folder, check_model_name, is_adapter, is_local
from hpt_trl.recipes.batches import BATCH_KEYS, settle_batch
from hpt_trl.recipes.bundled import comes_from, find_recipe
from hpt_trl.recipes.declared import Declared, declared_in_file, declared_somewhere, rewards_in_file
from hpt_trl.recipes.device import check_packages
from hpt_trl.recipes.joint import Values
from hpt_trl.recipes.pipeline_keys import PIPELINE
from hpt_trl.recipes.stages import STAGE_MODULES
from hpt_trl.recipes.trackers import check_trackers
from hpt_trl.recipes.values import declared_for, declared_now, read_values
from hpt_trl.rewards.names import is_path, unknown_reward
from hpt_trl.settings.file import Sources, read_recipe_file, split_overrides
from hpt_trl.settings.imported import check_found, seeing
from hpt_trl.settings.secrets import take_token

_MODEL, _REWARD_MODELS = "model_name_or_path", "reward_model_name_or_path"
_EVALUATE = "evaluate"
# Models beside the trained one; whether their folders hold what the stage reads there is for the stage to say.
_FROZEN = ("reference_model_name_or_path", "value_model_name_or_path")


class Checked(NamedTuple):
    """A recipe that has been looked at: the values of its keys, what its stage declares, where the values come from."""

    values: Values
    declared: Declared
    sources: Sources


def check_early(name: str, overrides: list[str], world_size: int | None = None, *, live: bool = False) -> None:
    """Checks what shows of a recipe without torch; see `look_at`.

    Raises:
        UserError: every mistake found.
    """
    mistakes = Collector()
    look_at(name, overrides, mistakes, world_size, live=live)
    mistakes.settle()


def look_at(
    name: str,
    overrides: list[str],
    mistakes: Collector,
    world_size: int | None = None,
    *,
    planned: bool = False,
    live: bool = False,
) -> Checked | None:
    """Notes what shows of a recipe without torch: keys, values, ranges, batches, and the files that it names.

    Args:
        name: a file, or the name of a bundled recipe.
        overrides: words of the command line.
        mistakes: takes what is found.
        world_size: processes of the run, 0 where that is not known; by default what the launcher says, else 1.
        planned: what the recipe's header or another recipe makes need not be there yet, nor packages.
        live: torch is imported anyway: where keys.json is of other versions than those installed, the stage is asked.

    Returns:
        What was looked at; None where keys.json is of other versions, so that nothing was.

    Raises:
        UserError: there is no such recipe, or its file cannot be read.
    """
    sources = Sources(read_recipe_file(find_recipe(name), mistakes), split_overrides(take_token(overrides), mistakes))
    processes = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
    made = _to_come(sources) if planned else ()
    return look_at_sources(sources, processes, mistakes, made, planned=planned, live=live)


def _to_come(sources: Sources) -> set[str]:
    values = [sources.given(key) for key in (_MODEL, "dataset_name", *_FROZEN)]
    mixture = sources.file.values.get("datasets")
    values += every_name(None, mixture) if isinstance(mixture, list) else []
    models = sources.file.values.get(_REWARD_MODELS) or []
    values += models if isinstance(models, list) else [models]
    return {name for name in map(str, values) if name and comes_from(name, sources.file.path)}


def look_at_sources(
    sources: Sources,
    world_size: int,
    mistakes: Collector,
    made: Collection[str] = (),
    *,
    has_model: bool = True,
    is_staged: bool = True,
    planned: bool = False,
    live: bool = False,
) -> Checked | None:
    """Notes the mistakes of a recipe that has been read; see `look_at`.

    Args:
        made: folders that will be there when the recipe runs.
        has_model: its model is one that it names.
        is_staged: it names a stage; where it does not, that is told already.
    """
    declare: Callable[[str], Declared | None] = declared_now if live else declared_in_file
    declared = declared_for(sources, mistakes, declare) if is_staged else declared_somewhere()
    if declared is None:
        return None
    values = read_values(sources, declared, mistakes)
    taken = values.taken
    if not planned:
        check_packages(taken, sources, mistakes)
    if declared.trains and world_size and values.are_sound(*BATCH_KEYS):
        with mistakes.noted():
            settle_batch(dict(taken), declared.keys, world_size, sources)
    _note_rewards(taken, sources, mistakes, made)
    if has_model and not declared.makes_model and taken.get(_MODEL):
        with mistakes.noted(), sources.placing(_MODEL):
            _check_model(str(taken[_MODEL]), declared, made, sources.file.path)
    for key in _FROZEN:
        if taken.get(key) and str(taken[key]) not in made:
            with mistakes.noted(), sources.placing(key):
                _refuse_unmade(str(taken[key]), key, sources.file.path)
                if not Path(taken[key]).expanduser().exists():
                    check_model_folder(str(taken[key]), key=key)
    names = names_of(taken.get("dataset_name") or None)
    if names and set(made).isdisjoint(names):
        with (
            mistakes.noted(),
            sources.placing("dataset_name", "dataset_options", "dataset_config", "dataset_streaming"),
        ):
            given = {name: taken.get(f"dataset_{name}") for name in ("options", "config")}
            check_name(names, streaming=bool(taken.get("dataset_streaming")), **given)
    if taken.get("datasets") is not None:
        with mistakes.noted(), sources.placing("datasets"):
            check_entries(taken["datasets"], taken, tuple(made), declared.rules.get("dataset_layout"))
    if has_model and "report_to" in taken and declared.stage:
        with mistakes.noted():
            settings: dict[str, Any] = {"stage": declared.stage, "trains": declared.trains}
            check_trackers(taken["report_to"], sources, packages=not planned, **settings)
    # An evaluation has none of its own.
    for name in (taken.get("evaluations") or []) if has_model else []:
        _note_evaluation(name, sources, world_size, mistakes, made, planned=planned, live=live)
    return Checked(values, declared, sources)


def _check_model(name: str, declared: Declared, made: Collection[str], path: Path) -> None:
    # Of an adapter that is measured, the model that it stands on has to be there.
    if name not in made and (declared.trains or not is_adapter(name)):
        _refuse_unmade(name, _MODEL, path)
        check_model_name(name)


def _refuse_unmade(name: str, key: str, path: Path) -> None:
    """Refuses a folder that is not there and that another recipe, or what a recipe's header says, makes.

    Raises:
        UserError: the message begins with the key, and gives the command.
    """
    if is_local(name) and not Path(name).expanduser().exists() and (made_by := comes_from(name, path)):
        if made_by.startswith("see "):
            raise UserError(f"{key}: there is no folder {name} yet; {made_by}")
        raise UserError(f"{key}: there is no folder {name} yet; make it first: {made_by}")


def _note_rewards(values: dict[str, Any], sources: Sources, mistakes: Collector, made: Collection[str]) -> None:
    known = rewards_in_file()
    for name in values.get("reward_funcs") or []:
        with mistakes.noted(), sources.placing("reward_funcs"):
            if is_path(name):
                check_found(name, "reward_funcs")
            elif known is not None and name not in known:
                raise unknown_reward(name, known)
    for name in values.get(_REWARD_MODELS) or []:
        with mistakes.noted(), sources.placing(_REWARD_MODELS):
            if name not in made:
                _refuse_unmade(name, _REWARD_MODELS, sources.file.path)
                check_model_folder(name, key=_REWARD_MODELS, adapters=True)


def _note_evaluation(
    name: str,
    sources: Sources,
    world_size: int,
    mistakes: Collector,
    made: Collection[str],
    *,
    planned: bool,
    live: bool,
) -> None:
    own = Collector()
    with own.noted(), seeing():
        inner = Sources(read_recipe_file(find_recipe(name), own), {_MODEL: ["-"], "output_dir": ["-"]})
        stage = inner.file.values.get("stage")
        if stage in (*STAGE_MODULES, PIPELINE) and stage != _EVALUATE:
            raise inner.error("stage", f"`{stage}` is no evaluation; allowed here: {_EVALUATE}.")
        look_at_sources(inner, world_size, own, made, has_model=False, planned=planned, live=live)
    for error in own.errors:
        said = str(error) if error.place is not None else f"{name}: {error}"
        mistakes.note(sources.error("evaluations", said))

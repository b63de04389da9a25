"""Reads a pipeline's YAML: its stages, what each of them uses, and the order in which they can run.

Every mistake that shows in the files alone is refused here, by file, line and key; nothing heavy is imported for it.
What only the stages' own configs know (their keys and values) is checked by `hpt_trl.pipeline.checks`.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpt_trl.errors import Collector, Place, UserError
from hpt_trl.files import folder_fault
from hpt_trl.pipeline.hub import check_repositories
from hpt_trl.pipeline.ordering import in_order
from hpt_trl.pipeline.plan import RECIPES_FOLDER, Plan, PlannedStage
from hpt_trl.pipeline.stages import StageKeys, plan_stage, value_of
from hpt_trl.recipes.pipeline_keys import PIPELINE, PIPELINE_KEYS, STAGE_NAME
from hpt_trl.recipes.profiles import Profile, find_profile, read_profile
from hpt_trl.settings.file import RecipeFile, Sources, read_recipe_file, shown
from hpt_trl.settings.file import split_overrides as split_words
from hpt_trl.settings.secrets import take_token
from hpt_trl.settings.values import did_you_mean

_NAME = re.compile(STAGE_NAME)
_NAMING = "a stage's name is letters, digits, `_` and `-`, at most 100 of them; it names its folder too."


def is_pipeline(path: Path) -> bool:
    """Whether a recipe file is a pipeline; mistakes of single keys are left to who reads it as one or the other.

    Raises:
        UserError: the file is not a recipe's YAML.
    """
    return read_recipe_file(path, Collector()).values.get("stage") == PIPELINE


def read_plan(path: Path, overrides: list[str], mistakes: Collector | None = None) -> Plan:
    """Reads a pipeline, its recipes and the command line.

    Args:
        path: the YAML file.
        overrides: words of the command line; a stage's keys are written `--<stage>.<key> value ...`.
        mistakes: takes what is found, so that more can be told with it; the plan then has the stages that could be
            read, in an order in which they can run only where nothing was found. By default they are raised.

    Raises:
        UserError: the mistakes, with file, line and key: a key that does not exist, a stage without recipe or kind, a
            reference that leads nowhere or to a stage of the wrong kind, a cycle, or two stages that would write to
            the same folder. What leaves no stages to look at is raised in any case.
    """
    noted = Collector() if mistakes is None else mistakes
    file = read_recipe_file(path, noted)
    words = split_words(take_token(overrides), noted)
    top = Sources(file, {key: value for key, value in words.items() if "." not in key})
    settings = _settings(top, noted)
    keys: list[StageKeys] = []
    with noted.noted():
        keys = _stage_keys(file, noted)
    _take_words(words, keys, file, noted)
    stages = in_order([plan_stage(one, noted) for one in keys], _names(file), noted)
    _note_folders(stages, noted)
    profile = None
    with noted.noted():
        profile = _profile(settings, top)
    if mistakes is None or not stages:
        noted.settle()
    plan = Plan(
        file=file,
        output_dir=Path(settings.get("output_dir", "")),
        stages=stages,
        profile=profile,
        overwrite=bool(settings.get("overwrite", False)),
    )
    if not noted.errors:
        check_repositories(plan)
    return plan


def _settings(top: Sources, mistakes: Collector) -> dict[str, Any]:
    """Checks the pipeline's own keys; returns their values, the command line over the file, without faulty ones."""
    meant = ""
    for key in {**top.file.values, **top.overrides}:
        if key not in PIPELINE_KEYS:
            meant += did_you_mean(key, PIPELINE_KEYS)
            hint = did_you_mean(key, PIPELINE_KEYS) or (
                f" A key of a stage is written `--<stage>.{key}`." if key in top.overrides else ""
            )
            said = f"a pipeline has no such key.{hint} Its keys: {', '.join(PIPELINE_KEYS)}; all others are a stage's."
            mistakes.note(top.error(key, said))
    values = {key: value for key, value in top.file.values.items() if value is not None}
    for key, words in top.overrides.items():
        if key in ("stage", "stages"):
            said = "it is set in the file alone; a stage's keys are written `--<stage>.<key> value`."
            mistakes.note(top.error(key, said))
        else:
            values[key] = value_of(words)
    kinds: dict[str, type] = {"output_dir": str, "accelerate_config": str, "num_processes": int, "overwrite": bool}
    for key, kind in kinds.items():
        if key in values and type(values[key]) is not kind:
            said = f"{top.quoted(key)} is not allowed" if top.quoted(key) else "there is no value"
            mistakes.note(top.error(key, f"{said}; allowed: {PIPELINE_KEYS[key]}."))
            del values[key]
        elif key == "output_dir" and not values.get(key):
            values.pop(key, None)
            # A misspelt one is told as such.
            if f"`{key}`" not in meant:
                mistakes.note(replace(top.place(key), note="").error(f"a pipeline needs it: {PIPELINE_KEYS[key]}."))
    if "output_dir" in values and (fault := folder_fault(Path(values["output_dir"]))):
        folder = values.pop("output_dir")
        mistakes.note(top.error("output_dir", f"{folder:.120} {fault}; name a folder that is new or empty."))
    if "num_processes" in values and "accelerate_config" not in values and "accelerate_config" not in top.file.values:
        said = "it needs `accelerate_config` (`--accelerate`), which says how they are started."
        mistakes.note(top.error("num_processes", said))
    if values.get("num_processes", 1) < 1:
        mistakes.note(top.error("num_processes", f"{values['num_processes']} is not allowed; allowed: 1 or more."))
    return values


def _profile(settings: dict[str, Any], top: Sources) -> Profile | None:
    name = settings.get("accelerate_config")
    if name is None:
        return None
    try:
        beside = None if "accelerate_config" in top.overrides else top.file.path.parent
        profile = read_profile(find_profile(name, beside), settings.get("num_processes"))
    except UserError as error:
        raise top.error("accelerate_config", str(error)) from error
    if profile.num_machines > 1:
        raise top.error("accelerate_config", f"{name} is for several machines; a pipeline starts its stages on one.")
    return profile


def _stage_keys(file: RecipeFile, mistakes: Collector) -> list[StageKeys]:
    """What stands under `stages`, of each stage that says something.

    Raises:
        UserError: there is no mapping.
    """
    sources = Sources(file, {})
    stages = file.values.get("stages")
    advice = "write one line per stage, e.g. `sft: {recipe: sft/stories-tiny, model: from:pretrain}`."
    if not stages:
        raise sources.error("stages", f"a pipeline needs stages; {advice}")
    if not isinstance(stages, dict):
        raise sources.error("stages", f"this is not a mapping of names to stages; {advice}")
    found = []
    for name, line in file.inner["stages"].lines.items():
        place = Place(shown(file.path), f"stages.{name}", line)
        inner = file.inner["stages"].inner.get(name)
        if not _NAME.fullmatch(name):
            mistakes.note(place.error(_NAMING))
        if inner is None or not inner.values or isinstance(file.inner["stages"].values[name], list):
            mistakes.note(place.error(f"the stage is empty; name a recipe or write its keys: {advice}"))
        else:
            found.append(StageKeys(name, place, inner))
    return found


def _take_words(words: dict[str, list[str]], stages: list[StageKeys], file: RecipeFile, mistakes: Collector) -> None:
    """Gives the command line's keys `<stage>.<key>` to their stages."""
    # `split_overrides` writes every `-` of a key as `_`.
    by_name = {stage.name.replace("-", "_"): stage for stage in stages}
    written = _names(file)
    for full, value in words.items():
        name, dot, key = full.partition(".")
        if name in by_name:
            by_name[name].words[key] = value
        # Of one that could not be read, that is told.
        elif dot and name not in (known.replace("-", "_") for known in written):
            said = f"there is no stage `{name}`.{did_you_mean(name, written)} Stages: {', '.join(written)}."
            mistakes.note(Place(shown(file.path), full, on_command_line=True).error(said))


def _names(file: RecipeFile) -> list[str]:
    """The stages' names, also of those that cannot be read."""
    stages = file.inner.get("stages")
    return [] if stages is None else list(stages.lines)


def _note_folders(stages: list[PlannedStage], mistakes: Collector) -> None:
    """Notes stages that would write to one folder: names that differ in case only, or by a merged adapter's."""
    taken = {RECIPES_FOLDER: "the stages' recipes"}
    for stage in stages:
        for folder in (stage.name, f"{stage.name}-merged"):
            if folder.casefold() in taken:
                said = f"its folder `{folder}` is also that of {taken[folder.casefold()]}; name the stage otherwise."
                mistakes.note(stage.place.error(said))
            taken[folder.casefold()] = f"stage `{stage.name}`"

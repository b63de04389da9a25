"""Reads a pipeline's YAML: its stages, what each of them uses, and the order in which they can run.

Every mistake that shows in the files alone is refused here, by file, line and key; nothing heavy is imported for it.
What only the stages' own configs know (their keys and values) is checked by `hpt_trl.pipeline.checks`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hpt_trl.errors import Collector, Place, UserError
from hpt_trl.files import folder_fault
from hpt_trl.pipeline.hub import check_repositories
from hpt_trl.pipeline.ordering import check_references, ordered
from hpt_trl.pipeline.plan import RECIPES_FOLDER, Plan, PlannedStage
from hpt_trl.pipeline.references import references_of
from hpt_trl.recipes.anchoring import anchored_value
from hpt_trl.recipes.bundled import anchored, find_recipe, recipe_name, recipes_folder
from hpt_trl.recipes.pipeline_keys import ALIASES, PIPELINE, PIPELINE_KEYS, STAGE_NAME
from hpt_trl.recipes.profiles import Profile, find_profile, read_profile
from hpt_trl.recipes.stages import STAGE_MODULES
from hpt_trl.settings.file import RecipeFile, RecipeLoader, Sources, parse_yaml_text, read_recipe_file, shown
from hpt_trl.settings.file import split_overrides as split_words
from hpt_trl.settings.secrets import TOKEN_KEY, take_secret_variables, take_token, take_token_of
from hpt_trl.settings.values import did_you_mean

# The key that names further recipes.
EVALUATIONS = "evaluations"

_REFUSED = {
    "output_dir": "a stage writes to the folder of its name in the pipeline's `output_dir`; drop the line.",
    "overwrite": "the pipeline runs a stage anew where its recipe or its inputs changed; to start all of it anew write "
    "`--overwrite true` without a stage's name.",
    "resume_from_checkpoint": "the pipeline resumes an interrupted stage by itself; drop the line.",
}
_NAME = re.compile(STAGE_NAME)
_NAMING = "a stage's name is letters, digits, `_` and `-`, at most 100 of them; it names its folder too."


@dataclass
class _Keys:
    """Keys, lines and texts of one mapping inside a YAML file."""

    values: dict[str, Any]
    lines: dict[str, int]
    texts: dict[str, str]


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
    words = split_words(take_token(overrides))
    top = Sources(file, {key: value for key, value in words.items() if "." not in key})
    settings = _settings(top, noted)
    inner: dict[str, _Keys] = {}
    with noted.noted():
        inner = _stage_keys(file, noted)
    given = _stage_words(words, file, inner, noted)
    stages: list[PlannedStage] = []
    for name, keys in inner.items():
        with noted.noted():
            stages.append(_plan_stage(name, keys, file, given.get(name, {})))
    with noted.noted():
        _check_folders(stages, file)
    if len(stages) == len(inner):
        # Of a stage that could not be read, the others' references say nothing.
        check_references(stages, noted)
    profile = None
    with noted.noted():
        profile = _profile(settings, top)
    if mistakes is None or not stages or "output_dir" not in settings:
        noted.settle()
    plan = Plan(
        file=file,
        output_dir=Path(settings["output_dir"]),
        stages=stages if noted.errors else ordered(stages),
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
            values[key] = _value(words)
    kinds: dict[str, type] = {"output_dir": str, "accelerate_config": str, "num_processes": int, "overwrite": bool}
    for key, kind in kinds.items():
        if key in values and type(values[key]) is not kind:
            mistakes.note(top.error(key, f"{top.quoted(key)} is not allowed; allowed: {PIPELINE_KEYS[key]}."))
            del values[key]
        elif key == "output_dir" and not values.get(key):
            values.pop(key, None)
            # A misspelt one is told as such.
            if f"`{key}`" not in meant:
                mistakes.note(top.error(key, f"a pipeline needs it: {PIPELINE_KEYS[key]}."))
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


def _value(words: list[str]) -> Any:
    """Words of the command line as one value."""
    if not words:
        return True
    try:
        values = [parse_yaml_text(word) for word in words]
    except ValueError:
        # The stage's own reading of the words says what is wrong with them.
        return " ".join(words)
    return values[0] if len(values) == 1 else values


def _stage_keys(file: RecipeFile, mistakes: Collector) -> dict[str, _Keys]:
    """The mapping under `stages`, with the lines of its keys, which `RecipeFile` has for the outermost ones only.

    Raises:
        UserError: there is no such mapping.
    """
    sources = Sources(file, {})
    stages = file.values.get("stages")
    advice = "write one line per stage, e.g. `sft: {recipe: sft/stories-tiny, model: from:pretrain}`."
    if not stages:
        raise sources.error("stages", f"a pipeline needs stages; {advice}")
    if not isinstance(stages, dict):
        raise sources.error("stages", f"this is not a mapping of names to stages; {advice}")
    loader = RecipeLoader(file.path.read_text(encoding="utf-8"))
    try:
        root = loader.get_single_node()
        loader.flatten_mapping(root)
        # Of one that is set twice, or merged as well, the last counts.
        outer = [value for key, value in root.value if key.value == "stages"][-1]
        loader.flatten_mapping(outer)
        found = {}
        for name, node in outer.value:
            line = name.start_mark.line + 1
            where = f"{shown(file.path)}, line {line}, `stages.{name.value}`"
            place = Place(where, shown(file.path), f"stages.{name.value}", line)
            if not _NAME.fullmatch(name.value):
                mistakes.note(place.error(_NAMING))
                continue
            if not isinstance(node, yaml.MappingNode) or not node.value:
                mistakes.note(place.error(f"the stage is empty; name a recipe or write its keys: {advice}"))
                continue
            loader.flatten_mapping(node)
            items = {key.value: (key, value) for key, value in node.value}
            found[name.value] = _Keys(
                # By their texts, as of every recipe: `1:` is no number there.
                values={key: loader.construct_object(value, deep=True) for key, (_, value) in items.items()},
                lines={key: inner.start_mark.line + 1 for key, (inner, _) in items.items()} | {"": line},
                texts={key: value.value for key, (_, value) in items.items() if isinstance(value.value, str)},
            )
        return found
    finally:
        loader.dispose()


def _stage_words(
    words: dict[str, list[str]], file: RecipeFile, stages: dict[str, _Keys], mistakes: Collector
) -> dict[str, dict[str, list[str]]]:
    """Command line keys `<stage>.<key>` by stage."""
    # `split_overrides` writes every `-` of a key as `_`.
    names = {name.replace("-", "_"): name for name in stages}
    found: dict[str, dict[str, list[str]]] = {}
    for full, value in words.items():
        stage, dot, key = full.partition(".")
        if not dot:
            continue
        if stage not in names:
            place = Place(f"--{full} on the command line ({shown(file.path)})", shown(file.path), full, None, True)
            said = f"there is no stage `{stage}`.{did_you_mean(stage, names)} Stages: {', '.join(stages)}."
            mistakes.note(place.error(said))
            continue
        found.setdefault(names[stage], {})[key] = value
    return found


def _plan_stage(name: str, keys: _Keys, file: RecipeFile, words: dict[str, list[str]]) -> PlannedStage:
    places: dict[str, Place] = {}
    values: dict[str, Any] = {}
    texts: dict[str, str] = {}
    folders = [file.path.parent]

    def place(key: str) -> Place:
        if key in words:
            text = f"--{name}.{key} on the command line ({shown(file.path)})"
            return Place(text, shown(file.path), f"{name}.{key}", on_command_line=True)
        line, full = keys.lines.get(key, keys.lines[""]), f"stages.{name}.{key}"
        return Place(f"{shown(file.path)}, line {line}, `{full}`", shown(file.path), full, line)

    written = {**keys.values, **{key: _value(value) for key, value in words.items()}}
    for key in written:
        if key in _REFUSED:
            raise place(key).error(_REFUSED[key])
    for short, long in ALIASES.items():
        if short in words:
            written.pop(long, None)
        elif long in words:
            written.pop(short, None)
        if short in written and long in written:
            raise place(short).error(f"`{long}` is set as well, which means the same; keep one of the two.")
    recipe = written.pop("recipe", None)
    if recipe is not None:
        # What stands on the command line counts from the working directory.
        base, base_name = _base_recipe(recipe, Path() if "recipe" in words else file.path.parent, place("recipe"))
        for key, value in base.values.items():
            if key in _REFUSED:
                continue
            values[key] = anchored_value(key, value, base.path.parent)
            at, line = shown(base.path), base.lines[key]
            text = f"{at}, line {line}, `{key}` (stage `{name}` of {shown(file.path)})"
            places[key] = Place(text, at, key, line)
        texts = {key: text for key, text in base.texts.items() if values.get(key) == base.values[key]}
        folders.insert(0, base.path.parent)
    measure = written.pop("measure", None)
    if measure is not None and not isinstance(measure, str):
        raise place("measure").error("write the name of one measure, e.g. `held_out.loss` or `reward`.")
    passed: dict[str, list[str]] = {}
    for key, value in written.items():
        long = ALIASES.get(key, key)
        if long in ("reward_model_name_or_path", EVALUATIONS) and isinstance(value, str):
            value = [value]
        if key == EVALUATIONS or key not in words:
            value = anchored_value(long, value, Path() if key in words else file.path.parent)
        values[long], places[long] = value, place(key)
        texts.pop(long, None)
        if key in words:
            if not references_of(value):
                passed[long] = value if key == EVALUATIONS and isinstance(value, list) else words[key]
        elif key in keys.texts and value == keys.values[key]:
            texts[long] = keys.texts[key]
    # What is left is written down: into the stage's recipe, and into the record of the pipeline.
    take_secret_variables(values)
    if not take_token_of(values, texts):
        raise places[TOKEN_KEY].error("what is written there is no text; allowed: a token of the Hub.")
    kind = values.get("stage")
    if kind is None:
        line, full = keys.lines[""], f"stages.{name}"
        raise Place(f"{shown(file.path)}, line {line}, `{full}`", shown(file.path), full, line).error(
            "it says neither `recipe` nor `stage`. Write `recipe: <name or path>`, or `stage: "
            f"{name if name in STAGE_MODULES else 'sft'}` and all its keys."
        )
    if not isinstance(kind, str) or kind not in STAGE_MODULES:
        inside = " A pipeline is no stage of a pipeline; write its stages here." if kind == PIPELINE else ""
        raise places["stage"].error(
            f"there is no stage `{kind!s:.80}`.{inside or did_you_mean(str(kind), STAGE_MODULES)} Stages: "
            f"{', '.join(sorted(STAGE_MODULES))}."
        )
    return PlannedStage(
        name=name,
        kind=kind,
        recipe=None if recipe is None else base_name,
        values=values,
        texts=texts,
        words=passed,
        places=places,
        folders=folders,
        uses=list(dict.fromkeys(used for value in values.values() for used in references_of(value))),
        measure=measure,
    )


def _base_recipe(recipe: Any, folder: Path, place: Place) -> tuple[RecipeFile, str]:
    """The recipe that a stage stands on, and its name for reading; a path counts from the folder first."""
    try:
        path = find_recipe(anchored(str(recipe), folder))
    except UserError as error:
        raise place.error(str(error)) from error
    base = read_recipe_file(path)
    if base.values.get("stage") == PIPELINE:
        raise place.error(f"{shown(path)} is a pipeline itself; a stage's recipe is of one training stage.")
    bundled = path.resolve().is_relative_to(recipes_folder())
    return base, recipe_name(path) if bundled else shown(path)


def _check_folders(stages: list[PlannedStage], file: RecipeFile) -> None:
    """Refuses stages that would write to one folder: names that differ in case only, or by a merged adapter's."""
    taken = {RECIPES_FOLDER: "the stages' recipes"}
    for stage in stages:
        for folder in (stage.name, f"{stage.name}-merged"):
            if folder.casefold() in taken:
                raise UserError(
                    f"{shown(file.path)}, `stages.{stage.name}`: its folder `{folder}` is also that of "
                    f"{taken[folder.casefold()]}; name the stage otherwise."
                )
            taken[folder.casefold()] = f"stage `{stage.name}`"

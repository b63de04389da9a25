"""Reads the stages of a pipeline: keys of the recipe that each stands on, its own, and those of the command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpt_trl.errors import Collector, Place, UserError
from hpt_trl.pipeline.plan import PlannedStage
from hpt_trl.pipeline.references import references_of
from hpt_trl.recipes.anchoring import anchored_value
from hpt_trl.recipes.bundled import anchored, find_recipe, recipe_name, recipes_folder
from hpt_trl.recipes.pipeline_keys import ALIASES, PIPELINE
from hpt_trl.recipes.stages import STAGE_MODULES, check_stage
from hpt_trl.settings.file import RecipeFile, parse_yaml_text, read_recipe_file, shown
from hpt_trl.settings.secrets import TOKEN_KEY, take_secret_variables, take_token_of

# The key that names further recipes.
EVALUATIONS = "evaluations"

_REFUSED = {
    "output_dir": "a stage writes to the folder of its name in the pipeline's `output_dir`; drop the line.",
    "overwrite": "the pipeline runs a stage anew where its recipe or its inputs changed; to start all of it anew write "
    "`--overwrite true` without a stage's name.",
    "resume_from_checkpoint": "the pipeline resumes an interrupted stage by itself; drop the line.",
}


@dataclass
class StageKeys:
    """What a pipeline says of one stage.

    Attributes:
        name: of the stage.
        place: of the stage's line.
        file: the keys in the pipeline's file.
        words: key -> words on the command line.
    """

    name: str
    place: Place
    file: RecipeFile
    words: dict[str, list[str]] = field(default_factory=dict)

    def of(self, key: str) -> Place:
        """Where a key is set; the stage's line where it is not."""
        if key in self.words:
            return Place(self.place.file, f"{self.name}.{key}", on_command_line=True)
        return Place(self.place.file, f"{self.place.key}.{key}", self.file.lines.get(key, self.place.line))

    def folder(self, key: str) -> Path:
        """From where a key's paths count first: on the command line the working directory."""
        return Path() if key in self.words else self.file.path.parent

    def written(self, mistakes: Collector) -> dict[str, Any]:
        """The keys, the command line's over the file's, without those that a stage cannot have."""
        values = {**self.file.values, **{key: value_of(words) for key, words in self.words.items()}}
        for key in [key for key in values if key in _REFUSED]:
            mistakes.note(self.of(key).error(_REFUSED[key]))
            del values[key]
        for short, long in ALIASES.items():
            if short in self.words:
                values.pop(long, None)
            elif long in self.words:
                values.pop(short, None)
            if short in values and long in values:
                said = f"`{long}` is set as well, which means the same; keep one of the two."
                mistakes.note(self.of(short).error(said))
                del values[short]
        return values


def plan_stage(keys: StageKeys, mistakes: Collector) -> PlannedStage:
    """Joins the keys of a stage; of one that names no kind that there is, the kind is empty."""
    stage = PlannedStage(keys.name, keys.place, folders=[keys.file.path.parent])
    written = keys.written(mistakes)
    based = written.pop("recipe", None)
    if based is not None:
        with mistakes.noted():
            _take_base(stage, based, keys, mistakes)
    measure = written.pop("measure", None)
    if measure is None or isinstance(measure, str):
        stage.measure = measure
    else:
        mistakes.note(keys.of("measure").error("write the name of one measure, e.g. `held_out.loss` or `reward`."))
    for key, value in written.items():
        _take(stage, key, value, keys)
    # What is left is written down: into the stage's recipe, and into the record of the pipeline.
    take_secret_variables(stage.values)
    if not take_token_of(stage.values, stage.texts):
        said = "what is written there is no text; allowed: a token of the Hub."
        mistakes.note(stage.places[TOKEN_KEY].error(said))
    # What a recipe that cannot be read would have said is not missing as well.
    if stage.recipe is not None or based is None or "stage" in stage.values:
        with mistakes.noted():
            stage.kind = _kind(stage, keys)
    return stage


def value_of(words: list[str]) -> Any:
    """Returns words of the command line as one value."""
    if not words:
        return True
    try:
        values = [parse_yaml_text(word) for word in words]
    except ValueError:
        # The stage's own reading of the words says what is wrong with them.
        return " ".join(words)
    return values[0] if len(values) == 1 else values


def _take_base(stage: PlannedStage, recipe: Any, keys: StageKeys, mistakes: Collector) -> None:
    """Takes the keys of the recipe that a stage stands on.

    Raises:
        UserError: there is none that can be read, or it is a pipeline.
    """
    place = keys.of("recipe")
    try:
        path = find_recipe(anchored(str(recipe), keys.folder("recipe")))
    except UserError as error:
        raise place.error(str(error)) from error
    base = read_recipe_file(path, mistakes)
    if base.values.get("stage") == PIPELINE:
        raise place.error(f"{shown(path)} is a pipeline itself; a stage's recipe is of one training stage.")
    for key in [key for key in base.values if key not in _REFUSED]:
        stage.values[key] = anchored_value(key, base.values[key], path.parent)
        note = f" (stage `{stage.name}` of {keys.place.file})"
        stage.places[key] = Place(shown(path), key, base.lines[key], note=note)
        if key in base.texts and stage.values[key] == base.values[key]:
            stage.texts[key] = base.texts[key]
    stage.inner.update(base.inner)
    stage.folders.insert(0, path.parent)
    bundled = path.resolve().is_relative_to(recipes_folder())
    stage.recipe = recipe_name(path) if bundled else shown(path)


def _take(stage: PlannedStage, key: str, value: Any, keys: StageKeys) -> None:
    """Takes a key of the pipeline, over that of the recipe."""
    long = ALIASES.get(key, key)
    if long in ("reward_model_name_or_path", EVALUATIONS) and isinstance(value, str):
        value = [value]
    if key == EVALUATIONS or key not in keys.words:
        value = anchored_value(long, value, keys.folder(key))
    stage.values[long], stage.places[long] = value, keys.of(key)
    stage.texts.pop(long, None)
    stage.inner.pop(long, None)
    if key in keys.words:
        if not references_of(value):
            stage.words[long] = value if key == EVALUATIONS and isinstance(value, list) else keys.words[key]
        return
    if key in keys.file.texts and value == keys.file.values[key]:
        stage.texts[long] = keys.file.texts[key]
    if key in keys.file.inner:
        stage.inner[long] = keys.file.inner[key]


def _kind(stage: PlannedStage, keys: StageKeys) -> str:
    kind = stage.values.get("stage")
    likely = stage.name if stage.name in STAGE_MODULES else "sft"
    if kind is None and stage.recipe is None:
        raise keys.place.error(
            f"it says neither `recipe` nor `stage`. Write `recipe: <name or path>`, or `stage: {likely}` and all its "
            "keys."
        )
    if kind is None:
        raise keys.place.error(f"its recipe {stage.recipe} names no `stage`; write `stage: {likely}` here or there.")
    if kind == PIPELINE:
        raise stage.places["stage"].error(
            "there is no stage `pipeline`. A pipeline is no stage of a pipeline; write its stages here."
        )
    try:
        check_stage(str(kind))
    except UserError as error:
        raise stage.places["stage"].error(str(error)) from error
    return str(kind)

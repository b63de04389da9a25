"""Holds every key and value of a recipe to what its stage declares; all mistakes are told together.

Where keys.json is of the installed versions, neither torch nor TRL is imported for it (`hpt_trl.recipes.declared`).
"""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpt_trl.data.entries import KEY as MIXTURE
from hpt_trl.errors import Collector, Place, UserError
from hpt_trl.recipes.anchoring import anchored_value
from hpt_trl.recipes.declared import Declared, declared_by, declared_in_file, declared_somewhere
from hpt_trl.recipes.joint import Values, note_joint_mistakes
from hpt_trl.recipes.paths import paths_fault
from hpt_trl.recipes.stages import STAGE_MODULES, check_stage, load_stage
from hpt_trl.recipes.streaming import note_streaming_mistakes
from hpt_trl.settings.environment import variable_fault
from hpt_trl.settings.file import Sources, shown
from hpt_trl.settings.imported import see_folders
from hpt_trl.settings.keys import meant_by, unknown_key
from hpt_trl.settings.ranges import problem
from hpt_trl.settings.secrets import TOKEN_KEY, take_token_of
from hpt_trl.settings.values import NotAllowed, convert, did_you_mean, read_words


def checked_values(sources: Sources) -> tuple[dict[str, Any], Declared]:
    """Returns key -> value of its field's type, the command line over the file, and what the stage declares.

    The variables of the recipe's block `env` are set.

    Raises:
        UserError: every mistake of keys and values, with the places that `sources` gives them.
    """
    mistakes = Collector()
    declared = declared_for(sources, mistakes, declared_now)
    values = None if declared is None else read_values(sources, declared, mistakes)
    mistakes.settle()
    assert declared is not None and values is not None
    return values.taken, declared


def declared_now(stage: str) -> Declared:
    """What a stage declares, by its classes where keys.json is of other versions."""
    return declared_in_file(stage) or declared_by(load_stage(stage))


def declared_for(sources: Sources, mistakes: Collector, declare: Callable[[str], Declared | None]) -> Declared | None:
    """What the stage that a recipe names declares; where it names none that there is, what any stage does.

    Args:
        declare: what a stage declares, if that can be said.

    Returns:
        None where nothing can be said.
    """
    try:
        return declare(stage_of(sources))
    except UserError as error:
        declared = declared_somewhere()
        unknown = [] if declared is None else [name for name in _names(sources) if name not in declared.keys]
        # A misspelt `stage` is told as such.
        if declared is None or not any(meant_by(name, declared.keys) == "stage" for name in unknown):
            mistakes.note(error)
        return declared


def stage_of(sources: Sources) -> str:
    """Returns the name of the stage that a recipe names.

    Raises:
        UserError: none, or one that there is not.
    """
    name = sources.given("stage")
    if not name:
        file, guess = shown(sources.file.path), _guessed_stage(sources)
        written = ", ".join(f"`stage: {stage}`" for stage in sorted(STAGE_MODULES))
        likely = f" This looks like `stage: {guess}`." if guess else ""
        raise Place(file, "stage").error(f"the key `stage` is missing. Write one of: {written}.{likely}")
    try:
        check_stage(name)
    except UserError as error:
        raise sources.error("stage", str(error)) from error
    return name


def _guessed_stage(sources: Sources) -> str | None:
    """The stage of a recipe that names none, as other projects' do: by its folder or name, else by a key."""
    words = re.split(r"[^a-z]+", "/".join(sources.file.path.parts[-2:]).lower())
    named = [stage for stage in ("sft", "dpo", "grpo", "ppo", "reward") if stage in words]
    by_keys = {"reward_funcs": "grpo", "num_generations": "grpo", "beta": "dpo", "packing": "sft"}
    return next(iter(named + [stage for key, stage in by_keys.items() if key in sources.file.values]), None)


def read_values(sources: Sources, declared: Declared, mistakes: Collector) -> Values:
    """Reads every key of a recipe and holds its value to type and range; then what the keys ask of each other.

    The variables of the recipe's block `env` are set.
    """
    values = Values()
    _set_environment(sources, mistakes)
    see_folders(sources.module_folders)
    with mistakes.noted():
        if not take_token_of(sources.file.values, sources.file.texts):
            raise sources.error(TOKEN_KEY, "what is written there is no text; allowed: a token of the Hub.")
    for name in _names(sources):
        if name == "stage" and not declared.stage:
            # Told by who looked for the stage.
            continue
        try:
            key, value = read_key(name, sources, declared)
            if name not in sources.overrides:
                value = anchored_value(key, value, sources.folder)
            elif key == "evaluations":
                # Where they are read later, the working directory may be another.
                value = anchored_value(key, value, Path())
            if fault := paths_fault(key, value):
                raise sources.error(key, fault)
            values.taken[key] = value
        except UserError as error:
            mistakes.note(error)
            values.faulty.add(name)
            if name not in declared.keys and (meant := meant_by(name, declared.keys)):
                values.faulty.add(meant)
    note_joint_mistakes(values, declared, sources, mistakes)
    note_streaming_mistakes(values.taken, declared, sources, mistakes)
    return values


def _names(sources: Sources) -> list[str]:
    """Every key that is given, once; `env` is TrlParser's."""
    return [name for name in {**sources.file.values, **sources.overrides} if name != "env" or name in sources.overrides]


def _set_environment(sources: Sources, mistakes: Collector) -> None:
    """Sets the variables of TrlParser's `env` block, before torch is imported and reads some of them."""
    variables = sources.file.values.get("env")
    if variables is None:
        return
    # The command line has no such block.
    place = replace(sources, overrides={}).place("env")
    if not isinstance(variables, dict):
        mistakes.note(place.error("allowed: a mapping of variables to values."))
        return
    for variable, value in variables.items():
        if fault := variable_fault(variable, value):
            mistakes.note(place.error(fault))
        else:
            os.environ[str(variable)] = str(value)


def read_key(name: str, sources: Sources, declared: Declared) -> tuple[str, Any]:
    """A key that is given, and its value of the field's type and in its range.

    Raises:
        UserError: the stage has no such key, or it does not take the value.
    """
    key, value = _typed(name, sources, declared)
    if key in declared.rules and (message := problem(declared.rules[key], value)):
        raise sources.error(key, f"{sources.quoted(key) or 'null'} {message}")
    return key, value


def _typed(name: str, sources: Sources, declared: Declared) -> tuple[str, Any]:
    known = declared.keys
    positive = name.removeprefix("no_")
    if name in sources.overrides and name not in known and positive in known and not sources.overrides[name]:
        # TrlParser's `--no_<key>`.
        return positive, False
    if name in declared.left_out:
        raise sources.error(name, f"the stage `{declared.stage}` trains nothing, so the key says nothing; drop it.")
    if name not in known:
        raise sources.error(name, unknown_key(name, known, sources.value(name)))
    key = known[name]
    try:
        if name in sources.overrides:
            value, text = read_words(key.hint, sources.overrides[name])
        else:
            value, text = sources.file.values[name], sources.file.texts.get(name, "")
        if name == MIXTURE and isinstance(value, list):
            # Its entries are told of one by one, where they are read.
            return name, value
        if name == "scale_rewards" and text.lower() in ("true", "false"):
            # TRL's other names for `group` and `none`.
            text = {"true": "group", "false": "none"}[text.lower()]
        taken = convert(key.hint, value, text, key.choices)
        if isinstance(taken, str) and not key.takes_text:
            raise NotAllowed("a mapping, or null")
        return name, taken
    except NotAllowed as problem:
        given = sources.quoted(name)
        said = f"{given} is not allowed" if given else "there is no value"
        raise sources.error(name, f"{said}; allowed: {problem}.{did_you_mean(given, problem.names)}") from problem
    except ValueError as problem:
        raise sources.error(name, f"{problem}.") from problem

"""Holds every key and value of a recipe to what its stage declares.

Where keys.json is of the installed versions, neither torch nor TRL is imported for it (`hpt_trl.recipes.declared`).
"""

import os
from typing import Any, get_origin

from hpt_trl.errors import UserError
from hpt_trl.recipes.declared import Declared, declared_by, declared_in_file
from hpt_trl.recipes.device import check_quantization
from hpt_trl.recipes.paths import check_paths
from hpt_trl.recipes.stages import STAGE_MODULES, check_stage, load_stage
from hpt_trl.settings.file import RecipeFile, Sources, shown
from hpt_trl.settings.keys import unknown_key
from hpt_trl.settings.ranges import problem
from hpt_trl.settings.secrets import TOKEN_KEY, take_token_of
from hpt_trl.settings.values import NotAllowed, convert, did_you_mean, members, read_words

# Fields of `dict | str` whose text is the path of a file; everywhere else text must be a mapping.
MAPPING_OR_PATH = ("deepspeed", "fsdp_config", "accelerator_config")


def checked_values(sources: Sources) -> tuple[dict[str, Any], Declared]:
    """Returns key -> value of its field's type, the command line over the file, and what the stage declares.

    The variables of the recipe's block `env` are set.

    Raises:
        UserError: the first mistake, with the place that `sources` gives it.
    """
    _set_environment(sources.file)
    if not take_token_of(sources.file.values, sources.file.texts):
        raise sources.error(TOKEN_KEY, "what is written there is no text; allowed: a token of the Hub.")
    name = stage_of(sources)
    declared = declared_in_file(name) or declared_by(load_stage(name))
    values = _read_values(sources, declared)
    _check_values(values, declared, sources)
    check_paths(values, sources)
    return values, declared


def _set_environment(file: RecipeFile) -> None:
    """Sets the variables of TrlParser's `env` block, before torch is imported and reads some of them."""
    variables = file.values.get("env")
    if variables is None:
        return
    if not isinstance(variables, dict):
        raise _of_environment(file, "allowed: a mapping of variables to values.")
    for name, value in variables.items():
        if not str(name) or set(str(name)) & {"=", "\0"}:
            raise _of_environment(file, f"{str(name)[:80]!r} cannot be the name of a variable.")
        if value is None or isinstance(value, dict | list):
            said = "is empty" if value is None else "is no single value"
            raise _of_environment(file, f"the value of {name!s:.80} {said}; write a text, in quotes where it is one.")
        os.environ[str(name)] = str(value)


def _of_environment(file: RecipeFile, message: str) -> UserError:
    return UserError(f"{shown(file.path)}, line {file.lines['env']}, `env`: {message}")


def stage_of(sources: Sources) -> str:
    """Returns the name of the stage that a recipe names.

    Raises:
        UserError: none, or one that there is not.
    """
    name = sources.given("stage")
    if not name:
        raise UserError(
            f"{shown(sources.file.path)}: the key `stage` is missing. Write one of: "
            + ", ".join(f"`stage: {stage}`" for stage in sorted(STAGE_MODULES))
            + "."
        )
    try:
        check_stage(name)
    except UserError as error:
        raise sources.error("stage", str(error)) from error
    return name


def _read_values(sources: Sources, declared: Declared) -> dict[str, Any]:
    known, values = declared.keys, {}
    for name in [*sources.file.values, *sources.overrides]:
        if name == "env" and name not in sources.overrides:
            continue
        positive = name.removeprefix("no_")
        if name in sources.overrides and name not in known and positive in known and not sources.overrides[name]:
            # TrlParser's `--no_<key>`.
            values[positive] = False
            continue
        if name in declared.left_out:
            raise sources.error(name, f"the stage `{declared.stage}` trains nothing, so the key says nothing; drop it.")
        if name not in known:
            raise sources.error(name, unknown_key(name, known))
        key = known[name]
        try:
            if name in sources.overrides:
                value, text = read_words(key.hint, sources.overrides[name])
            else:
                value, text = sources.file.values[name], sources.file.texts.get(name, "")
            if name == "scale_rewards" and text.lower() in ("true", "false"):
                # TRL's other names for `group` and `none`.
                text = {"true": "group", "false": "none"}[text.lower()]
            values[name] = convert(key.hint, value, text, key.choices)
            takes_text = name in MAPPING_OR_PATH or isinstance(key.default, str) or dict not in _bare_types(key.hint)
            if isinstance(values[name], str) and not takes_text:
                raise NotAllowed("a mapping, or null")
        except NotAllowed as problem:
            given = sources.given(name)
            said = f"{given} is not allowed" if given else "there is no value"
            raise sources.error(name, f"{said}; allowed: {problem}.{did_you_mean(given, problem.names)}") from problem
        except ValueError as problem:
            raise sources.error(name, f"{problem}.") from problem
    return values


def _bare_types(hint: Any) -> set[Any]:
    return {get_origin(kind) or kind for kind in members(hint)}


def _check_values(values: dict[str, Any], declared: Declared, sources: Sources) -> None:
    """Checks ranges, and what must and must not be named."""
    for key, value in values.items():
        if key in declared.rules and (message := problem(declared.rules[key], value)):
            raise sources.error(key, f"{sources.given(key)} {message}")
    required = {
        "model_name_or_path": "write a Hub id, a local folder or `smollm2-135m`",
        "dataset_name": "write a Hub id, a local file, `arithmetic` or `reasoning_gym:<task>`",
        "output_dir": "write the folder for the model and the results",
    }
    if declared.makes_model or declared.works:
        del required["model_name_or_path"]
    if declared.works:
        del required["dataset_name"]
    if declared.rewards == "required" and not values.get("reward_model_name_or_path"):
        required["reward_funcs"] = "name at least one reward, e.g. `[math_answer]`, or a `reward_model_name_or_path`"
    for key, advice in required.items():
        if not values.get(key):
            raise sources.error(key, f"a recipe needs it; {advice}.")
    if values.get("load_in_4bit") and values.get("load_in_8bit"):
        raise sources.error("load_in_4bit", "`load_in_8bit` is set as well; keep one of the two.")
    check_quantization(values, declared, sources)
    for key in ("reward_funcs", "reward_model_name_or_path"):
        if declared.rewards == "none" and values.get(key):
            raise sources.error(key, f"the stage `{declared.stage}` uses no rewards; drop the line.")
    weights = values.get("reward_weights")
    rewards = [*(values.get("reward_funcs") or []), *(values.get("reward_model_name_or_path") or [])]
    if weights is not None and len(weights) != len(rewards):
        raise sources.error(
            "reward_weights",
            f"{len(weights)} weights for {len(rewards)} rewards; allowed: one per `reward_funcs`, then one per "
            "`reward_model_name_or_path`.",
        )

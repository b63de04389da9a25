"""Turns a recipe into checked configs.

A recipe is a YAML of flat keys: the fields of the stage's trainer config, of `trl.ModelConfig` and of
`RecipeArguments`. Every mistake in it is refused before any weight is loaded, by file, line and key. The module itself
imports neither torch nor TRL, so that recipes can be listed at once.
"""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt_trl.errors import UserError
from hpt_trl.recipes.batches import settle_batch
from hpt_trl.recipes.bundled import anchored
from hpt_trl.recipes.device import check_profile, check_quantization, settle_device
from hpt_trl.recipes.profiles import Profile, launched_profile
from hpt_trl.recipes.recipe import Recipe, place_of
from hpt_trl.recipes.vllm import settle_vllm
from hpt_trl.settings.file import RecipeFile, Sources, read_recipe_file, shown, split_overrides
from hpt_trl.settings.secrets import TOKEN_KEY, take_token, take_token_of

if TYPE_CHECKING:
    from hpt_trl.recipes.recipe import Stage
    from hpt_trl.settings.keys import Key

# Fields of `dict | str` whose text is the path of a file; everywhere else text must be a mapping.
MAPPING_OR_PATH = ("deepspeed", "fsdp_config", "accelerator_config")


def _set_environment(file: RecipeFile) -> None:
    """Sets the variables of TrlParser's `env` block, before torch is imported and reads some of them."""
    variables = file.values.get("env")
    if variables is None:
        return
    if not isinstance(variables, dict):
        line = file.lines["env"]
        raise UserError(f"{shown(file.path)}, line {line}, `env`: allowed: a mapping of variables to values.")
    for name, value in variables.items():
        os.environ[str(name)] = str(value)


def _stage_of(sources: Sources) -> "Stage":
    from hpt_trl.recipes.stages import STAGE_MODULES, load_stage

    name = sources.given("stage")
    if not name:
        raise UserError(
            f"{shown(sources.file.path)}: the key `stage` is missing. Write one of: "
            + ", ".join(f"`stage: {stage}`" for stage in sorted(STAGE_MODULES))
            + "."
        )
    try:
        return load_stage(name)
    except UserError as error:
        raise sources.error("stage", str(error)) from error


def _read_values(sources: Sources, known: "dict[str, Key]", stage: "Stage") -> dict[str, Any]:
    """Returns key -> value of its field's type, the command line over the file."""
    from hpt_trl.settings.keys import unknown_key
    from hpt_trl.settings.values import NotAllowed, convert, did_you_mean, read_words

    values: dict[str, Any] = {}
    for name in [*sources.file.values, *sources.overrides]:
        if name == "env" and name not in sources.overrides:
            continue
        positive = name.removeprefix("no_")
        if name in sources.overrides and name not in known and positive in known and not sources.overrides[name]:
            # TrlParser's `--no_<key>`.
            values[positive] = False
            continue
        if name in stage.left_out:
            raise sources.error(name, f"the stage `{stage.name}` trains nothing, so the key says nothing; drop it.")
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
    from typing import get_origin

    from hpt_trl.settings.values import members

    return {get_origin(kind) or kind for kind in members(hint)}


def _check_ranges(values: dict[str, Any], stage: "Stage", sources: Sources) -> None:
    from hpt_trl.recipes.ranges import rules_for
    from hpt_trl.settings.ranges import problem

    rules = rules_for(stage)
    for key, value in values.items():
        if key in rules and (message := problem(rules[key], value)):
            raise sources.error(key, f"{sources.given(key)} {message}")
    required = {
        "model_name_or_path": "write a Hub id, a local folder or `smollm2-135m`",
        "dataset_name": "write a Hub id, a local file, `arithmetic` or `reasoning_gym:<task>`",
        "output_dir": "write the folder for the model and the results",
    }
    if stage.make_config is not None or stage.work is not None:
        del required["model_name_or_path"]
    if stage.work is not None:
        del required["dataset_name"]
    if stage.rewards == "required" and not values.get("reward_model_name_or_path"):
        required["reward_funcs"] = "name at least one reward, e.g. `[math_answer]`, or a `reward_model_name_or_path`"
    for key, advice in required.items():
        if not values.get(key):
            raise sources.error(key, f"a recipe needs it; {advice}.")
    if values.get("load_in_4bit") and values.get("load_in_8bit"):
        raise sources.error("load_in_4bit", "`load_in_8bit` is set as well; keep one of the two.")
    check_quantization(values, stage, sources)
    for key in ("reward_funcs", "reward_model_name_or_path"):
        if stage.rewards == "none" and values.get(key):
            raise sources.error(key, f"the stage `{stage.name}` uses no rewards; drop the line.")
    weights = values.get("reward_weights")
    rewards = [*(values.get("reward_funcs") or []), *(values.get("reward_model_name_or_path") or [])]
    if weights is not None and len(weights) != len(rewards):
        raise sources.error(
            "reward_weights",
            f"{len(weights)} weights for {len(rewards)} rewards; allowed: one per `reward_funcs`, then one per "
            "`reward_model_name_or_path`.",
        )


def _check_schedule(config: Any, sources: Sources) -> None:
    """Makes the learning rate schedule once for nothing: Trainer makes it only after the model is loaded."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
    try:
        get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=dict(config.lr_scheduler_kwargs or {}),
        )
    except (TypeError, ValueError) as error:
        raise sources.error(
            "lr_scheduler_kwargs", f"`lr_scheduler_type: {config.lr_scheduler_type.value}` does not take it: {error}."
        ) from error


def read_recipe(
    path: Path, overrides: list[str] | None = None, world_size: int | None = None, profile: Profile | None = None
) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: the YAML file.
        overrides: words of the command line, `--key value ...`; they stand above the file, the file above defaults.
        world_size: processes of the run; by default the profile's, else what the launcher says (WORLD_SIZE), else 1.
        profile: how the processes are to be started; by default as this one was.

    Raises:
        UserError: the first mistake, with file and line (or the command line), key, value and what is allowed.
    """
    return resolve_recipe(
        Sources(read_recipe_file(path), split_overrides(take_token(overrides or []))), world_size, profile
    )


def resolve_recipe(sources: Sources, world_size: int | None = None, profile: Profile | None = None) -> Recipe:
    """Checks the keys and values of a recipe, wherever they come from; see `read_recipe`.

    Raises:
        UserError: the first mistake, with the place that `sources` gives it.
    """
    file = sources.file
    _set_environment(file)
    if not take_token_of(file.values, file.texts):
        raise sources.error(TOKEN_KEY, "what is written there is no text; allowed: a token of the Hub.")
    stage = _stage_of(sources)

    from trl import ModelConfig, TrlParser

    from hpt_trl.settings.keys import keys_of

    # A pipeline runs here: it names the processes beside its profile.
    planned = profile is not None and world_size is None
    if world_size is None:
        world_size = int(os.environ.get("WORLD_SIZE", "1")) if profile is None else profile.num_processes
    profile = launched_profile(world_size) if profile is None else profile
    classes: tuple[Any, ...] = (stage.argument_class, stage.config_class, ModelConfig)
    known = {name: key for name, key in keys_of(*classes).items() if name not in stage.left_out}
    values = _read_values(sources, known, stage)
    _check_ranges(values, stage, sources)
    if values.get("evaluations"):
        values["evaluations"] = anchored(values["evaluations"], file.path.parent)
    raw = dict(values)
    if stage.trains:
        settle_batch(values, known, world_size, sources)
    if profile.use_cpu and profile.distributed_type.startswith("MULTI_"):
        values.setdefault("use_cpu", True)
    settle_device(values, sources)
    settle_vllm(values, known, stage.name, sources, planned)
    try:
        with warnings.catch_warnings():
            # TRL's own default trips this deprecation of Transformers 5.
            warnings.filterwarnings("ignore", message="`gradient_checkpointing", category=FutureWarning)
            # `success_reward` is a key of the rewards and of HybridPostConfig: both get its value.
            arguments, config, model_args = TrlParser(classes, conflict_handler="resolve").parse_dict(values)
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise place_of(error, known, sources) from error
    if stage.trains:
        _check_schedule(config, sources)
        check_profile(config, profile, sources)
    if config.n_gpu > 1 and world_size == 1:
        raise sources.error(
            "per_device_train_batch_size" if stage.trains else "per_device_eval_batch_size",
            f"one process sees {config.n_gpu} GPUs and would multiply the batch; start one process per GPU with "
            f"`--accelerate multi_gpu --num_processes {config.n_gpu}`, or show it a single one with "
            "CUDA_VISIBLE_DEVICES=0.",
        )
    return Recipe(
        path=file.path,
        stage=stage,
        arguments=arguments,
        config=config,
        model_args=model_args,
        lines=file.lines,
        overrides=set(sources.overrides),
        raw=raw,
        world_size=world_size,
        profile=profile,
        sources=sources,
        keys=known,
    )

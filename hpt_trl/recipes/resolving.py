"""Finds recipes and turns one into checked configs.

A recipe is a YAML of flat keys: the fields of the stage's trainer config, of `trl.ModelConfig` and of
`RecipeArguments`. Every mistake in it is refused before any weight is loaded, by file, line and key. The module itself
imports neither torch nor TRL, so that recipes can be listed at once.
"""

import difflib
import os
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hpt_trl.errors import UserError
from hpt_trl.recipes.batches import settle_batch
from hpt_trl.recipes.device import check_profile, check_quantization, settle_device
from hpt_trl.recipes.profiles import Profile, launched_profile
from hpt_trl.rollouts.vllm import settle_vllm
from hpt_trl.settings.file import RecipeFile, Sources, read_recipe_file, shown, split_overrides

if TYPE_CHECKING:
    from trl import ModelConfig

    from hpt_trl.recipes.arguments import RecipeArguments
    from hpt_trl.recipes.stages import Stage
    from hpt_trl.settings.keys import Key

# Fields of `dict | str` whose text is the path of a file; everywhere else text must be a mapping.
MAPPING_OR_PATH = ("deepspeed", "fsdp_config", "accelerator_config")


@dataclass
class Recipe:
    """A recipe whose keys and values are checked.

    Attributes:
        path: the YAML file.
        stage: the training stage.
        arguments: data, rewards and evaluation.
        config: the stage's trainer config.
        model_args: TRL's model settings.
        lines: key -> line in the file, counted from 1.
        overrides: keys set on the command line.
        raw: key -> value as the file and the command line give it, types settled; written as YAML it is the resolved
            recipe.
        world_size: processes of the run.
        profile: what the processes share out: of the accelerate config that started them, or is asked about.
        sources: where each value comes from.
        keys: every key that the stage knows.
    """

    path: Path
    stage: "Stage"
    arguments: "RecipeArguments"
    config: Any
    model_args: "ModelConfig"
    lines: dict[str, int]
    overrides: set[str]
    raw: dict[str, Any]
    world_size: int
    profile: Profile
    sources: Sources = field(repr=False)
    keys: "dict[str, Key]" = field(repr=False)

    def error(self, key: str, message: str) -> UserError:
        """Returns (does not raise) the error about a key, with the place that set it in front of the message."""
        return self.sources.error(key, message)

    def setting(self, key: str, default: Any = None) -> Any:
        """Returns the trainer config's value of a key, or the default where the stage has no such key."""
        return getattr(self.config, key) if key in self.keys else default

    def place(self, error: Exception) -> UserError:
        """Returns another's complaint about the settings with the place of the key that it names, if it names one."""
        return _place_of(error, self.keys, self.sources)


class RecipeSummary(NamedTuple):
    """One line of `hpt-trl list`."""

    recipe: str
    stage: str
    model: str
    data: str
    hardware: str


def recipes_folder() -> Path:
    """Returns the folder of the recipes that come with the package: of the wheel, or of the checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "_recipes"
    return shipped if shipped.is_dir() else package.parent / "recipes"


def recipe_name(path: Path) -> str:
    """Returns the name by which `find_recipe` finds a bundled recipe, e.g. `hybrid/smollm2-135m-gsm8k`."""
    return path.resolve().relative_to(recipes_folder()).with_suffix("").as_posix()


def bundled_recipes() -> list[Path]:
    """Returns every recipe that comes with the package: each YAML below the recipes folder, sorted by name."""
    return sorted(recipes_folder().rglob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Returns the file of a recipe, given as a path or as the name of a bundled one (`quickstart`).

    Raises:
        UserError: there is neither; the message gives the nearest bundled name.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{name} is a folder; name a recipe file in it.")
    bundled = {recipe_name(recipe): recipe for recipe in bundled_recipes()}
    for asked in (name, name.removesuffix(".yaml").removesuffix(".yml")):
        if asked in bundled:
            return bundled[asked]
    short = {full.rpartition("/")[2]: full for full in bundled}
    near = difflib.get_close_matches(name, [*bundled, *short], n=1)
    meant = f" Did you mean `{short.get(near[0], near[0])}`?" if near else ""
    raise UserError(f"there is no recipe `{name}`: neither a file nor a bundled one.{meant} `hpt-trl list` shows all.")


def summarize(path: Path) -> RecipeSummary:
    """Reads what `hpt-trl list` shows of a bundled recipe; the hardware is its comment line `# Hardware: ...`."""
    file = read_recipe_file(path)
    values = {key: str(file.values.get(key, "-")) for key in ("stage", "model_name_or_path", "dataset_name")}
    return RecipeSummary(
        recipe_name(path),
        values["stage"],
        values["model_name_or_path"],
        values["dataset_name"],
        hardware_of(path) or "-",
    )


def hardware_of(path: Path) -> str:
    """Returns what a recipe's comment line `# Hardware: ...` asks for; empty where there is none."""
    found = re.search(r"^#\s*Hardware:\s*(.+?)\.?\s*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return found[1] if found else ""


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


def _read_values(sources: Sources, known: "dict[str, Key]") -> dict[str, Any]:
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
    from hpt_trl.settings.ranges import problem, rules_for

    rules = rules_for(stage)
    for key, value in values.items():
        if key in rules and (message := problem(rules[key], value)):
            raise sources.error(key, f"{sources.given(key)} {message}")
    required = {
        "model_name_or_path": "write a Hub id, a local folder or `smollm2-135m`",
        "dataset_name": "write a Hub id, a local file, `arithmetic` or `reasoning_gym:<task>`",
        "output_dir": "write the folder for the model and the results",
    }
    if stage.make_config is not None:
        del required["model_name_or_path"]
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


def _place_of(error: Exception, known: "dict[str, Key]", sources: Sources) -> UserError:
    """Returns a config's own complaint with the place of the key that it is about, where it names one."""
    text = str(error).strip()
    named = [word for word in re.findall(r"[A-Za-z_0-9]+", text) if word in known]
    given = [word for word in named if word in sources.file.lines or word in sources.overrides]
    # A single ordinary word (`seed`, `debug`) may stand in any sentence: without a source it proves nothing.
    quoted = [word for word in re.findall(r"`([A-Za-z_0-9]+)`", text) if word in known]
    key = next(iter([word for word in quoted if word in given] + given + quoted), None)
    if key is None:
        return UserError(f"{shown(sources.file.path)}: {text}")
    return sources.error(key, text.removeprefix(f"`{key}` is "))


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
    return resolve_recipe(Sources(read_recipe_file(path), split_overrides(overrides or [])), world_size, profile)


def resolve_recipe(sources: Sources, world_size: int | None = None, profile: Profile | None = None) -> Recipe:
    """Checks the keys and values of a recipe, wherever they come from; see `read_recipe`.

    Raises:
        UserError: the first mistake, with the place that `sources` gives it.
    """
    file = sources.file
    _set_environment(file)
    stage = _stage_of(sources)

    from trl import ModelConfig, TrlParser

    from hpt_trl.settings.keys import keys_of

    # A pipeline runs here: it names the processes beside its profile.
    planned = profile is not None and world_size is None
    if world_size is None:
        world_size = int(os.environ.get("WORLD_SIZE", "1")) if profile is None else profile.num_processes
    profile = launched_profile(world_size) if profile is None else profile
    classes: tuple[Any, ...] = (stage.argument_class, stage.config_class, ModelConfig)
    known = keys_of(*classes)
    values = _read_values(sources, known)
    _check_ranges(values, stage, sources)
    raw = dict(values)
    settle_batch(values, known, world_size, sources)
    if profile.use_cpu and profile.distributed_type.startswith("MULTI_"):
        values.setdefault("use_cpu", True)
    settle_device(values, sources)
    settle_vllm(values, known, stage.name, sources, planned)
    try:
        with warnings.catch_warnings():
            # TRL's own default trips this deprecation of Transformers 5.
            warnings.filterwarnings("ignore", message="`gradient_checkpointing", category=FutureWarning)
            arguments, config, model_args = TrlParser(classes).parse_dict(values)
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise _place_of(error, known, sources) from error
    _check_schedule(config, sources)
    check_profile(config, profile, sources)
    if config.n_gpu > 1 and world_size == 1:
        raise sources.error(
            "per_device_train_batch_size",
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

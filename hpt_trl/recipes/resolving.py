"""Turns a recipe into checked configs.

A recipe is a YAML of flat keys: the fields of the stage's trainer config, of `trl.ModelConfig` and of
`RecipeArguments`. Every mistake in it is refused before any weight is loaded, by file, line and key; what shows without
torch and TRL in `hpt_trl.recipes.early`, before they are imported.
"""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpt_trl.errors import Collector
from hpt_trl.recipes.batches import settle_batch
from hpt_trl.recipes.device import check_packages, check_profile, settle_device
from hpt_trl.recipes.profiles import Profile, launched_profile
from hpt_trl.recipes.recipe import Recipe, place_of
from hpt_trl.recipes.stages import load_stage
from hpt_trl.recipes.trying import try_settings
from hpt_trl.recipes.values import checked_values
from hpt_trl.recipes.vllm import settle_vllm
from hpt_trl.recipes.withheld import note_secrets
from hpt_trl.settings.file import Sources, read_recipe_file, split_overrides
from hpt_trl.settings.keys import MAPPING_OR_PATH
from hpt_trl.settings.secrets import take_token


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
        UserError: the mistakes, with file and line (or the command line), key, value and what is allowed.
    """
    return resolve_recipe(
        Sources(read_recipe_file(path), split_overrides(take_token(overrides or []))), world_size, profile
    )


def resolve_recipe(sources: Sources, world_size: int | None = None, profile: Profile | None = None) -> Recipe:
    """Checks the keys and values of a recipe, wherever they come from; see `read_recipe`.

    Raises:
        UserError: the mistakes, with the places that `sources` gives them. Those of single keys come first, then those
            of the machine and the batch, then those that the configs themselves tell, which do so one at a time.
    """
    file, mistakes = sources.file, Collector()
    values, declared = checked_values(sources)
    # A pipeline runs here: it names the processes beside its profile.
    planned = profile is not None and world_size is None
    known = declared.keys
    if not planned:
        check_packages(values, sources, mistakes)
    stage = load_stage(declared.stage)

    from trl import ModelConfig, TrlParser

    if world_size is None:
        world_size = int(os.environ.get("WORLD_SIZE", "1")) if profile is None else profile.num_processes
    profile = launched_profile(world_size) if profile is None else profile
    classes: tuple[Any, ...] = (stage.argument_class, stage.config_class, ModelConfig)
    raw = dict(values)
    note_secrets({key: value for key, value in raw.items() if key != "env"}, sources, mistakes)
    if stage.trains:
        with mistakes.noted():
            settle_batch(values, known, world_size, sources)
    if profile.use_cpu and profile.distributed_type.startswith("MULTI_"):
        values.setdefault("use_cpu", True)
    with mistakes.noted():
        settle_device(values, sources)
    with mistakes.noted():
        settle_vllm(values, known, stage.name, sources, planned)
    mistakes.settle()
    try:
        with warnings.catch_warnings(), _refused_leaves_nothing():
            # TRL's own default trips this deprecation of Transformers 5.
            warnings.filterwarnings("ignore", message="`gradient_checkpointing", category=FutureWarning)
            # `success_reward` is a key of the rewards and of HybridPostConfig: both get its value.
            arguments, config, model_args = TrlParser(classes, conflict_handler="resolve").parse_dict(values)
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise place_of(error, known, sources) from error
    except AttributeError as error:
        # What these hold, accelerate takes for mappings of mappings, unseen.
        given = [key for key in MAPPING_OR_PATH if values.get(key) is not None]
        if not given:
            raise
        said = f"what it holds is not as accelerate reads it ({error}); allowed: a mapping, or a file of one."
        raise sources.error(given[0], said) from error
    targets = values.get("lora_target_modules")
    if targets and len(targets) == 1 and re.fullmatch(r"[\w.]+", targets[0]) and targets != ["all-linear"]:
        # Of a single name the base makes a text, which PEFT takes for a pattern of whole paths.
        model_args.lora_target_modules = list(targets)
    if stage.trains:
        try_settings(config, profile, sources, mistakes)
        with mistakes.noted():
            check_profile(config, profile, sources)
    if config.n_gpu > 1 and world_size == 1:
        batch = "per_device_train_batch_size" if stage.trains else "per_device_eval_batch_size"
        said = (
            f"one process sees {config.n_gpu} GPUs and would multiply the batch; start one process per GPU with "
            f"`--accelerate multi_gpu --num_processes {config.n_gpu}`, or show it a single one with "
            "CUDA_VISIBLE_DEVICES=0."
        )
        mistakes.note(sources.error(batch, said))
    mistakes.settle()
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


@contextmanager
def _refused_leaves_nothing() -> Iterator[None]:
    """Inside, a config that is refused does not stay DeepSpeed's in this process, as in a notebook that goes on."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    try:
        yield
    except Exception:
        unset_hf_deepspeed_config()
        raise

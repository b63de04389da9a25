"""A recipe as the flat configuration that trackers compare runs by: every setting, no secret."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hpt_trl.files import valid_json
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.record import short_name

MASK = "***"
# Names of what nobody else may read. Tokens of a text (`eos_token`, `pad_token`) are none.
_SECRET = re.compile(
    r"(^|_)(api_?keys?|secrets?|passwords?|passwd|credentials?|authorization|cookies?)$|"
    r"(^|_)(hub|hf|auth|access|api|use_auth|write|read|bearer|push_to_hub|github|wandb|huggingface)_tokens?$|^tokens?$",
    re.IGNORECASE,
)
# Keys of the Hub, OpenAI's and its like, GitHub, and what stands for a password in a URL.
_VALUES = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|wandb_v1_)[A-Za-z0-9_-]{8,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


def masked(value: Any, name: str = "") -> Any:
    """The value with every secret in it as `***`, found by its name or by how it is written.

    Args:
        name: The key that holds the value.
    """
    if isinstance(value, Mapping):
        return {key: masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item, name) for item in value]
    if _SECRET.search(name) and value is not None and not isinstance(value, bool):
        return MASK
    return _VALUES.sub(MASK, value) if isinstance(value, str) else value


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """Mappings inside of mappings as one, names joined by dots; other values stay as they are."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value} if prefix else {}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flattened(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def settings_of(recipe: Recipe, prepared: Prepared | None = None) -> dict[str, Any]:
    """Every setting of a recipe that the trainer's own arguments do not hold, flat, secrets masked.

    Args:
        prepared: The recipe with its rows and rewards, where the stage has some.

    Returns:
        `recipe/...` (what the recipe and the command line say), `data/...`, `rewards/...`, `model/...` (with LoRA and
        quantization) and `batch/...`.
    """
    arguments, model = asdict(recipe.arguments), asdict(recipe.model_args)
    groups: dict[str, Any] = {
        "recipe": {"name": short_name(recipe.path), "stage": recipe.stage.name, **recipe.raw},
        "settings": {name: value for name, value in arguments.items() if name in recipe.keys},
        "model": {name: value for name, value in model.items() if name in recipe.keys},
    }
    if prepared is not None:
        groups["data"] = _data(prepared)
        groups["rewards"] = {
            reward.__name__: weight for reward, weight in zip(prepared.rewards, prepared.reward_weights, strict=True)
        }
        if recipe.stage.trains:
            groups["batch"] = _batch(recipe)
    return {
        f"{group}/{key}": value
        for group, values in groups.items()
        for key, value in flattened(valid_json(masked(values))).items()
    }


def _data(prepared: Prepared) -> dict[str, Any]:
    splits = prepared.splits
    found = {"source": splits.source, "layout": splits.layout, "rows": len(splits.train)}
    return found if splits.test is None else found | {"held_out": splits.test_source, "held_out_rows": len(splits.test)}


def _batch(recipe: Recipe) -> dict[str, Any]:
    config = recipe.config
    per_device, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    return {
        "processes": recipe.world_size,
        "rows_per_device": per_device,
        "accumulation_steps": accumulation,
        "rows_per_step": recipe.world_size * per_device * accumulation,
    }


class MaskedArguments:
    """A trainer's arguments as transformers' callbacks log them, without secrets; all else is the arguments' own.

    Transformers masks only what is called `..._token`, not what lies inside of `model_init_kwargs` or a URL.
    """

    def __init__(self, arguments: Any):
        self._arguments = arguments

    def __getattr__(self, name: str) -> Any:
        return getattr(self._arguments, name)

    def to_dict(self) -> dict[str, Any]:
        return masked(self._arguments.to_dict())

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

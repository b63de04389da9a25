"""A recipe as the flat configuration that trackers compare runs by: every setting, no secret."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hpt_trl.files import valid_json
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.record import short_name
from hpt_trl.settings.masking import masked


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
    found = {"source": splits.source, "layout": splits.layout, "rows": splits.rows}
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

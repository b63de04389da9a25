"""The configs of models that a recipe names beside the one that it trains."""

from transformers import PretrainedConfig

from hpt_trl.models.hub_parts import value_model_folder
from hpt_trl.models.loading import load_config, parts_of
from hpt_trl.recipes.recipe import Recipe

REFERENCE, REFERENCE_REVISION = "reference_model_name_or_path", "reference_model_revision"
VALUE_MODEL = "value_model_name_or_path"


def named_config(recipe: Recipe, key: str) -> PretrainedConfig | None:
    """The config of the model that a key names; of an adapter's base."""
    name = recipe.setting(key)
    if name is None:
        return None
    name = value_model_folder(name) if key == VALUE_MODEL else name
    parts = parts_of(name, revision=recipe.setting(REFERENCE_REVISION) if key == REFERENCE else None)
    return load_config(
        parts.base, revision=parts.revision, trust_remote_code=recipe.setting("trust_remote_code", False)
    )

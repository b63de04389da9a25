"""Published configs of the bundled recipes' models, as far as memory and FLOPs depend on them.

known_models.json has them by their name on the Hub: what a model takes is told where it is not at hand. The source is
each repository's own file, https://huggingface.co/NAME/blob/main/config.json. They were held against litgpt's table of
these files (litgpt/config.py), and Sheared-LLaMA's and Qwen2.5-VL's against printed copies of them; their totals agree
with the models' published numbers of parameters (the tests).
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt_trl.recipes.bundled import bundled_recipes, header_of
from hpt_trl.settings.file import read_recipe_file

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@cache
def _known() -> dict[str, dict[str, Any]]:
    return json.loads(Path(__file__).with_name("known_models.json").read_text(encoding="utf-8"))


def known_model(name: str, path: Path) -> str | None:
    """Returns the model on the Hub whose architecture a name has; None where that is not known.

    Args:
        name: a Hub id, or a folder that is a copy of one, or that a recipe leaves.
        path: the recipe that names it; its header may say where the folder comes from.
    """
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        if name in _known():
            return name
        header, folder = header_of(path), rf"{re.escape(name)}(?=\s|$)"
        if found := re.search(rf"hf download (\S+) --local-dir {folder}|hpt-trl merge (\S+) {folder}", header):
            name = found[1] or found[2]
            continue
        for recipe in bundled_recipes():
            values = read_recipe_file(recipe).values
            if str(values.get("output_dir")) == name.rstrip("/") and isinstance(values.get("model_name_or_path"), str):
                name, path = values["model_name_or_path"], recipe
                break
    return None


def known_config(name: str, **changes: Any) -> "PretrainedConfig":
    """Returns the config of a model of `known_model`.

    Args:
        changes: fields of another value.
    """
    from transformers import CONFIG_MAPPING

    fields = _known()[name] | changes
    return CONFIG_MAPPING[fields.pop("model_type")](**fields)

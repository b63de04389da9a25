"""Stages that train text models alone."""

from typing import Any

from transformers import ProcessorMixin

from hpt_trl.recipes.recipe import Recipe


def refuse_processor(recipe: Recipe, tokenizer: Any) -> None:
    """Refuse a model that reads images.

    Raises:
        UserError: it brings a processor.
    """
    if isinstance(tokenizer, ProcessorMixin):
        name = recipe.model_args.model_name_or_path
        raise recipe.error(
            "model_name_or_path",
            f"{name} has a processor for images, and `stage: {recipe.stage.name}` trains text models; name one.",
        )

"""What a recipe makes of its tokenizer, as the trainer will, but before the rows are encoded; and what it must have."""

from typing import Any

from transformers import PretrainedConfig

from hpt_trl.errors import UserError
from hpt_trl.models.chat_template import take_chat_template
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.rewards.completions import text_tokenizer


def settle_tokenizer(recipe: Recipe, tokenizer: Any) -> None:
    """Give a tokenizer the recipe's chat template and end-of-sequence token.

    Raises:
        UserError: either cannot be taken, or nothing ends a text.
    """
    path = recipe.setting("chat_template_path")
    if path is not None:
        try:
            take_chat_template(tokenizer, path)
        except UserError as error:
            raise recipe.error("chat_template_path", str(error).removeprefix("chat_template_path: ")) from error
    _take_eos_token(recipe, text_tokenizer(tokenizer))


def _take_eos_token(recipe: Recipe, tokenizer: Any) -> None:
    model = recipe.model_args.model_name_or_path
    token = recipe.setting("eos_token")
    if token is not None:
        if token not in tokenizer.get_vocab():
            raise recipe.error("eos_token", f"{token} is no token of {model}; its own is {tokenizer.eos_token}.")
        tokenizer.eos_token = token
        if tokenizer.pad_token is None:
            tokenizer.pad_token = token
    if tokenizer.eos_token is None:
        said = f"the tokenizer of {model} has no end-of-sequence token, which has to close every answer and document; "
        if "eos_token" in recipe.keys:
            raise recipe.error("eos_token", f"{said}name one of its tokens.")
        raise recipe.error(
            "model_name_or_path", f"{said}write `eos_token` into its tokenizer_config.json, one of its tokens."
        )


def embedded_tokens(recipe: Recipe, tokenizer: Any, model_config: PretrainedConfig) -> int | None:
    """For how many tokens the model has embeddings, where the tokenizer knows more; None where it does not.

    Raises:
        UserError: the token that ends or pads texts is one of those beyond.
    """
    text = text_tokenizer(tokenizer)
    # The trainer widens the matrix for the tokens that another model's template needs.
    embedded = None if recipe.setting("chat_template_path") else model_config.get_text_config().vocab_size
    if embedded is None or len(text) <= embedded:
        return None
    for name in ("eos_token", "pad_token"):
        if getattr(text, f"{name}_id") >= embedded:
            raise recipe.error(
                name if name in recipe.keys else "model_name_or_path",
                f"the tokenizer's `{name}` {getattr(text, name)} has the id {getattr(text, f'{name}_id')}, but the "
                f"model has embeddings for {embedded} tokens; name another one, or a model whose matrix was widened "
                "for it (`resize_token_embeddings`).",
            )
    return embedded

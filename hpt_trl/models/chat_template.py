"""The chat template that a recipe names, taken as the trainer takes it, and before the data is rendered."""

from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.models.loading import load_tokenizer


def take_chat_template(tokenizer: Any, path: str) -> None:
    """Give a tokenizer the template of a .jinja file or of another model's tokenizer, with the tokens that it needs.

    TRL does the same once the model is there (`clone_chat_template`), and then widens the model's embeddings.

    Args:
        path: `chat_template_path` of the recipe.

    Raises:
        UserError: there is no such file or model, or its tokenizer has no template.
    """
    if path.endswith((".jinja", ".j2")):
        try:
            tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"chat_template_path: {path} cannot be read: {error}.") from error
        return
    try:
        source: Any = load_tokenizer(path)
    except UserError as error:
        message = str(error).removeprefix("model_name_or_path: ")
        raise UserError(f"chat_template_path: neither a .jinja file nor a tokenizer: {message}") from error
    if source.chat_template is None:
        raise UserError(f"chat_template_path: the tokenizer of {path} has no chat template; name a .jinja file.")
    tokenizer.chat_template = source.chat_template
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in source.added_tokens_decoder.values() if token.content not in known])
    tokenizer.eos_token = source.eos_token

"""Calls of tools: whether a model's chat template writes them, and its tokenizer takes them out of a turn."""

from trl.chat_template_utils import add_response_schema, supports_tool_calling

from hpt_trl.data.rendering import Encoder
from hpt_trl.errors import UserError


def read_calls(encoder: Encoder) -> None:
    """Has the tokenizer take calls out of turns, as TRL does for the templates that it knows.

    Raises:
        UserError: the chat template writes no calls, or nobody knows how to take them out of a turn.
    """
    other = "name another model, or let the environment have its actions in the text (of `vrag`: `vocabulary: tags`)."
    if not supports_tool_calling(encoder.processing_class):
        raise UserError(f"actions are calls of tools, which the model's chat template does not write; {other}")
    if encoder.tokenizer.response_template is None:
        try:
            add_response_schema(encoder.processing_class)
        except ValueError as error:
            raise UserError(
                "actions are calls of tools, but the tokenizer has no `response_template` that takes them out of a "
                f"turn, and TRL knows none for its chat template; {other}"
            ) from error

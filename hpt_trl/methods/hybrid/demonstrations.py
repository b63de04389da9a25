"""Demonstrations as token ids that continue exactly where a rollout of the same prompt would."""

from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl.data_utils import apply_chat_template, is_conversational, prepare_multimodal_messages

from hpt_trl.errors import UserError


def demonstration_ids(
    example: dict[str, Any],
    column: str,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    eos_token_ids: list[int],
    max_length: int | None,
    chat_template_kwargs: dict[str, Any],
) -> tuple[list[int], bool]:
    """Token ids of a row's demonstration, ending on an end-of-sequence token as a finished rollout does.

    What a chat template writes after the end of the turn (a newline, usually) is cut off: a rollout stops there.

    Args:
        example: A row of the dataset: `prompt` and the demonstration, both text or both messages.
        column: Name of the demonstration's column.
        eos_token_ids: Ids that end a completion; the tokenizer's own comes first when one has to be added.
        max_length: Longest demonstration in tokens. A longer one is cut and keeps its last token, so that the model
            is never taught to run on.

    Returns:
        The token ids and whether they were cut.

    Raises:
        UserError: prompt and demonstration are not of the same kind.
    """
    prompt, demonstration = example["prompt"], example[column]
    if is_conversational({"prompt": prompt}) != isinstance(demonstration, list):
        raise UserError(
            f"`prompt` is {_kind(prompt)} but the demonstration in `{column}` is {_kind(demonstration)}; "
            f"write both as text or both as messages. Row: {prompt!r}"
        )
    is_processor = isinstance(processing_class, ProcessorMixin)
    tokenizer: Any = processing_class.tokenizer if is_processor else processing_class
    text = demonstration
    if isinstance(demonstration, list):
        if is_processor:
            images = example.get("images") or ([example["image"]] if example.get("image") is not None else [])
            prompt = prepare_multimodal_messages(prompt, images=images)
            demonstration = prepare_multimodal_messages(demonstration)
        rendered = apply_chat_template(
            {"prompt": prompt, "completion": demonstration}, processing_class, **chat_template_kwargs
        )
        text = rendered["completion"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ends = [i for i, token in enumerate(ids) if token in eos_token_ids]
    if ends and not tokenizer.decode(ids[ends[-1] + 1 :]).strip():
        ids = ids[: ends[-1] + 1]
    else:
        ids = [*ids, tokenizer.eos_token_id]
    if max_length is not None and len(ids) > max_length:
        return [*ids[: max_length - 1], ids[-1]], True
    return ids, False


def _kind(value: Any) -> str:
    return "a list of messages" if isinstance(value, list) else "text" if isinstance(value, str) else repr(value)

"""What rewards get to see, and their calls outside of a training step.

The probe and the evaluation hand over what `GRPOTrainer._generate_and_score_completions` (TRL 1.16) hands over: token
ids without special tokens, or as the tokenizer's own response parser takes them apart; the recipe's columns; the
trainer's state. A reward that saw another text in the training than in the evaluation would be measured on something
that was never trained.
"""

import asyncio
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainerState
from trl.chat_template_utils import parse_response
from trl.data_utils import is_conversational, prepare_multimodal_messages

from hpt_trl.data.messages import Prompt, images_of

# Columns that the trainer does not hand to rewards under their own name.
_KEPT_BACK = ("prompt", "completion", "completion_ids")


def shape_completions(
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
) -> list[Any]:
    """Completions as rewards get them.

    Args:
        prompts: The rows' prompts: all text, or all messages.
        prompt_ids: Their tokens without padding, as far as they stand before the completion.
        completion_ids: Generated tokens, with the one that ends the completion.

    Returns:
        Texts for prompts that are texts; for messages a list of one assistant message each, with `reasoning_content`
        or `tool_calls` apart where the tokenizer has a response parser.
    """
    if not is_conversational({"prompt": prompts[0]}):
        return tokenizer.batch_decode(list(completion_ids), skip_special_tokens=True)
    text = text_tokenizer(tokenizer)
    if text.response_template is not None:
        return [
            [parse_response(text, ids, prefix=before, tools=[])]
            for before, ids in zip(prompt_ids, completion_ids, strict=True)
        ]
    contents = tokenizer.batch_decode(list(completion_ids), skip_special_tokens=True)
    return [[{"role": "assistant", "content": content}] for content in contents]


def shape_prompts(rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Prompts as rewards get them: those of rows with images hold them as parts of their messages."""
    prompts = [row["prompt"] for row in rows]
    if not {"image", "images"} & set(rows[0]):
        return prompts
    images = [images_of(row) for row in rows]
    if all(found == [] for found in images):
        return prompts
    return [prepare_multimodal_messages(prompt, images=found) for prompt, found in zip(prompts, images, strict=True)]


def text_tokenizer(tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> PreTrainedTokenizerBase:
    return tokenizer.tokenizer if isinstance(tokenizer, ProcessorMixin) else tokenizer


def unlogged(name: str, value: Any) -> None:
    """Stands for TRL's `log_metric` and `log_extra` where no training logs."""


def score_completions(
    rows: list[dict[str, Any]],
    completions: Sequence[Any],
    completion_ids: list[list[int]],
    rewards: Sequence[Callable[..., Any]],
    trainer_state: TrainerState | None = None,
) -> list[list[float | None]]:
    """Rewards of one completion per row, a list of `len(rewards)` values for each row.

    The functions are called as the trainers call them. Async functions are awaited together.

    Args:
        completions: From `shape_completions`; for prompts that are messages a string stands for an assistant message.
        trainer_state: The trainer's; without one there is a state of one step, none of which is done.
    """
    prompts = shape_prompts(rows)
    shaped = list(completions)
    if is_conversational({"prompt": prompts[0]}):
        shaped = [[{"role": "assistant", "content": c}] if isinstance(c, str) else c for c in shaped]
    columns = {key: [row[key] for row in rows] for key in rows[0] if key not in _KEPT_BACK}
    arguments = {
        "prompts": prompts,
        "completions": shaped,
        "completion_ids": completion_ids,
        **columns,
        # What TRL offers to rewards beside the columns. Schedules divide by `max_steps`.
        "trainer_state": TrainerState(max_steps=1) if trainer_state is None else trainer_state,
        "log_extra": unlogged,
        "log_metric": unlogged,
    }

    values = [reward(**arguments) for reward in rewards]
    waiting = [index for index, value in enumerate(values) if inspect.isawaitable(value)]
    if waiting:

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(values[index] for index in waiting))

        for index, value in zip(waiting, asyncio.run(all_of_them()), strict=True):
            values[index] = value
    return [list(row) for row in zip(*values, strict=True)]


def weighted_reward(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """The weighted sum over the rewards that apply and have a weight; None if none does or one is NaN or infinite."""
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None and weight]
    total = sum(float(value) * weight for value, weight in known)
    return total if known and math.isfinite(total) else None

"""The decoding loop of `generate` in which prompts that rows share are computed once, and rows that end leave.

What a row comes to is what `GenerationMixin._sample` gives it, to rounding: the logits processors, stopping criteria,
masks and position ids are transformers' own, and the random numbers those of the whole batch.
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from hpt_trl.models.dropout import is_noisy
from hpt_trl.models.generating.choosing import draw_tokens


def by_rows(
    model: Any,
    input_ids: Int[Tensor, "batch prompt"],
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    **model_kwargs: Any,
) -> Int[Tensor, "batch length"]:
    """Draws completions, as what `generate` calls a `custom_generate`.

    Args:
        model: a decoder-only `PreTrainedModel`.
        input_ids: left-padded.
        logits_processor: they see all rows in the order of `input_ids`, also those that have ended, as some keep
            something for each row.
        stopping_criteria: likewise.
        generation_config: as `generate` has prepared it, of sampling or greedy decoding, with an end token.
        model_kwargs: `past_key_values` of `hpt_trl.models.generating.cache`, and what has one entry for each row.

    Returns:
        Prompts and completions; padding after what has ended.
    """
    batch = len(input_ids)
    first, group = _prompts(input_ids, shared=not is_noisy(model))
    outputs = model._prefill(input_ids[first], generation_config, _of_rows(model_kwargs, first, batch))
    cache = model_kwargs["past_key_values"]
    cache.batch_select_indices(group)
    logits = outputs.logits[:, -1].to(dtype=torch.float32)[group]
    model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
    sequences, rows = input_ids, torch.arange(batch, device=input_ids.device)
    with model._optimize_model_for_decode():
        while True:
            scores = _processed(logits_processor, sequences, rows, logits)
            if generation_config.do_sample:
                tokens = draw_tokens(scores.softmax(dim=-1), rows, batch)
            else:
                tokens = scores.argmax(dim=-1)
            column = generation_config._pad_token_tensor.repeat(batch).index_copy(0, rows, tokens)
            sequences = torch.cat([sequences, column[:, None]], dim=1)
            going = (~stopping_criteria(sequences, None)[rows]).nonzero().squeeze(1)
            if not len(going):
                return sequences
            if len(going) < len(rows):
                cache.batch_select_indices(going)
                model_kwargs = _of_rows(model_kwargs, going, len(rows))
                rows = rows[going]
            inputs = model.prepare_inputs_for_generation(sequences[rows], next_sequence_length=1, **model_kwargs)
            outputs = model(**inputs, return_dict=True)
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
            logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
            del outputs


def _prompts(input_ids: Tensor, *, shared: bool) -> tuple[Tensor, Tensor]:
    """A row of each prompt, and which of these prompts each row has."""
    numbers: dict[tuple[int, ...], int] = {}
    first: list[int] = []
    group: list[int] = []
    for row, ids in enumerate(input_ids.tolist()):
        key = tuple(ids) if shared else (row,)
        if key not in numbers:
            numbers[key] = len(first)
            first.append(row)
        group.append(numbers[key])
    return torch.tensor(first, device=input_ids.device), torch.tensor(group, device=input_ids.device)


def _processed(processors: Any, sequences: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
    if not processors:
        return logits
    of_all = logits.new_zeros(len(sequences), logits.shape[1]).index_copy(0, rows, logits)
    return processors(sequences, of_all)[rows]


def _of_rows(model_kwargs: dict[str, Any], rows: Tensor, batch: int) -> dict[str, Any]:
    return {
        name: value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == batch else value
        for name, value in model_kwargs.items()
    }

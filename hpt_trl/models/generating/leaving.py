"""Has a model's `generate` go by rows where it can, and says where it cannot."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from accelerate import PartialState
from peft import PeftModel
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation import GenerationMode

from hpt_trl.models.adapters import base_of
from hpt_trl.models.generating.by_rows import by_rows
from hpt_trl.models.generating.cache import roomy_cache

logger = logging.getLogger(__name__)

# Settings by which `generate` goes other ways than a batch of rows over a growing cache, or returns something else.
_UNUSUAL = ("cache_implementation", "prefill_chunk_size", "return_dict_in_generate", "stop_strings")


@contextmanager
def finished_rows_leave(model: Any, *, sharded: bool, stopping: StoppingCriteria | None = None) -> Iterator[None]:
    """Inside, `model.generate` computes a prompt once for all its rows, and no row beyond its end.

    Where a model or its settings do not allow it, transformers' own loop goes on; which of the two it is is said once.

    Args:
        model: has `generate`, also with an adapter.
        sharded: its weights are (FSDP, ZeRO-3): all processes then have to make the same forward passes.
        stopping: says after each token which rows go on for nothing and are to end.
    """
    plain, own = model.generate, vars(model).get("generate")

    def generate(*args: Any, **kwargs: Any) -> Any:
        if stopping is not None:
            kwargs["stopping_criteria"] = StoppingCriteriaList([stopping])
        reason = "its weights are sharded" if sharded else _hindrance(model, *args, **kwargs)
        if PartialState().is_local_main_process:
            _tell(reason)
        if reason is not None:
            return plain(*args, **kwargs)
        return plain(*args, **kwargs, custom_generate=by_rows, past_key_values=roomy_cache(base_of(model).config))

    model.generate = generate
    try:
        yield
    finally:
        del model.generate
        if own is not None:
            # FSDP2's, by which weights that are spread are gathered for a generation.
            model.generate = own


def _hindrance(model: Any, *args: Any, generation_config: GenerationConfig, **kwargs: Any) -> str | None:
    """Why rows cannot leave; None where they can."""
    base, mode = base_of(model), generation_config.get_generation_mode(kwargs.get("assistant_model"))
    unusual = [name for name in _UNUSUAL if getattr(generation_config, name, None) not in (None, False)]
    more = sorted(kwargs.keys() - {"input_ids", "attention_mask", "stopping_criteria"})
    adapters = model.peft_config.values() if isinstance(model, PeftModel) else ()
    reason = None
    if mode not in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH):
        reason = f"it decodes by {mode.value}"
    elif unusual:
        reason = f"`{unusual[0]}` is set"
    elif args or more:
        reason = f"it is given {more[0] if more else 'inputs without names'}"
    elif generation_config.num_return_sequences not in (None, 1) or generation_config.use_cache is False:
        reason = "`num_return_sequences` or `use_cache` is set"
    elif generation_config.eos_token_id is None or generation_config.pad_token_id is None:
        reason = "no token ends a completion, or none pads it"
    elif base.config.is_encoder_decoder or base.config.get_text_config() is not base.config or base.is_remote_code():
        reason = "the model is an encoder-decoder, reads more than text, or brings its own code"
    elif any(adapter.is_prompt_learning or getattr(adapter, "alora_invocation_tokens", None) for adapter in adapters):
        reason = "its adapter acts by a token's place"
    elif not base._supports_default_dynamic_cache() or roomy_cache(base.config) is None:
        reason = "it keeps something else than keys and values of its tokens"
    return reason


@lru_cache
def _tell(reason: str | None) -> None:
    if reason is None:
        logger.info("Generation: each prompt is computed once, and rows that have ended leave the batch.")
    else:
        logger.info("Generation: by transformers' own loop, all rows to the end of the longest, as %s.", reason)

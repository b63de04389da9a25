"""Decoding by the model's own distribution, whatever its generation_config.json says.

`generate` fills in from the model's file what a call leaves open: a repetition penalty, banned or forced tokens,
n-grams that may not come again. A greedy answer is then not the model's most likely one, and a rollout is not drawn
from the distribution whose log-probabilities the loss takes.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from accelerate import PartialState
from transformers import GenerationConfig

logger = logging.getLogger(__name__)

# Of a model's generation config these say which tokens are special and how the cache is kept, nothing about choices.
_KEPT = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory"),
    *("compile_config", "disable_compile", "continuous_batching_config"),
)
# Every call sets these itself, by keys of the recipe.
_SET_BY_CALLS = ("do_sample", "temperature", "max_length", "max_new_tokens")


@contextmanager
def neutral_decoding(model: torch.nn.Module) -> Iterator[None]:
    """Inside, `model.generate` follows its arguments alone; the model's own generation config comes back after.

    Says once which settings of the model are left out.

    Args:
        model: The model, also wrapped (DDP, FSDP, DeepSpeed) or with an adapter.
    """
    holders: list[Any] = [module for module in model.modules() if "generation_config" in vars(module)]
    own = [holder.generation_config for holder in holders]
    for holder, config in zip(holders, own, strict=True):
        left_out = biasing(config)
        if left_out and PartialState().is_local_main_process:
            _tell(", ".join(f"{key} {value}" for key, value in left_out.items()))
        holder.generation_config = _neutral(config)
    try:
        yield
    finally:
        for holder, config in zip(holders, own, strict=True):
            holder.generation_config = config


def biasing(config: GenerationConfig) -> dict[str, Any]:
    """The settings of a generation config by which a completion is not drawn from the model's own distribution."""
    defaults = GenerationConfig._get_default_generation_params() | {"top_k": 0}
    return {
        key: value
        for key, value in config.to_dict().items()
        if key in vars(GenerationConfig())
        and key not in (*_KEPT, *_SET_BY_CALLS, "transformers_version", "_from_model_config")
        and value not in (None, False, [], {}, defaults.get(key))
    }


def _neutral(config: GenerationConfig) -> GenerationConfig:
    known = vars(GenerationConfig())
    # Entries of a model's own `generate` are none of transformers' and mean nothing to other models.
    return GenerationConfig(**{key: value for key, value in vars(config).items() if key in _KEPT or key not in known})


@lru_cache
def _tell(settings: str) -> None:
    logger.warning(
        "The model's generation_config.json sets %s: left out, in the training and in the evaluation, where the "
        "recipe's keys alone decide how completions are drawn.",
        settings if len(settings) <= 300 else settings[:300] + " […]",
    )

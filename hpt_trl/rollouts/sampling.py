"""How rollouts are drawn, where the loss has to know it."""

import logging
from functools import lru_cache
from typing import Any

from accelerate import PartialState
from transformers import GenerationConfig

from hpt_trl.models.decoding import biasing

logger = logging.getLogger(__name__)

# Settings of vLLM's sampling that `transformers` does not know.
_OF_VLLM = ("presence_penalty", "frequency_penalty", "logit_bias", "bad_words", "allowed_token_ids")
_NEUTRAL = {"top_p": "1.0", "top_k": "0", "min_p": "0.0", "repetition_penalty": "1.0"}


def check_sampling(config: Any) -> None:
    """Find settings by which rollouts are not drawn from the distribution whose log-probabilities the loss takes.

    Without vLLM they are warned of. Its importance-sampling correction weighs a token by its probability in training
    over that in vLLM. vLLM's is the one after the cut, which has raised what is left to a sum of 1; the training's is
    the one before it. The ratio would correct for the cut, with tokens missing that would have to make up for it.

    Args:
        config: a `trl.GRPOConfig`.

    Raises:
        ValueError: such a setting under the correction for vLLM, or a temperature that the loss would not divide by;
            with what to write instead.
    """
    more = config.generation_kwargs or {}
    if more.get("temperature", config.temperature) != config.temperature:
        raise ValueError(
            f"`generation_kwargs` draws rollouts at temperature {more['temperature']}, while the loss takes their "
            f"log-probabilities at {config.temperature}. Set `temperature: {more['temperature']}` instead."
        )
    for name in ("max_new_tokens", "max_length", "max_tokens"):
        if name in more:
            raise ValueError(f"`generation_kwargs` sets {name}: write `max_completion_length: {more[name]}` instead.")
    if unknown := [name for name in more if name not in vars(GenerationConfig()) and not config.use_vllm]:
        raise ValueError(
            f"`generation_kwargs` sets {unknown[0]}, which `transformers.GenerationConfig` does not know: it would be "
            "left out without a word; drop it."
        )
    found = _biasing({name: getattr(config, name) for name in _NEUTRAL} | more)
    if not found:
        return
    name, value = next(iter(found.items()))
    remedy = f"Set `{name}: {_NEUTRAL[name]}`" if name in _NEUTRAL else f"Take `{name}` out of `generation_kwargs`"
    if config.use_vllm and config.vllm_importance_sampling_correction:
        raise ValueError(
            f"`{name}` is {value}: the probabilities of rollouts drawn so are others than the training's, and vLLM's "
            f"importance-sampling correction would be biased by it. {remedy}, or "
            "`vllm_importance_sampling_correction: false`."
        )
    if PartialState().is_local_main_process:
        _tell(", ".join(f"`{name}` {value}" for name, value in found.items()), remedy)


def _biasing(given: dict[str, Any]) -> dict[str, Any]:
    known = {key: value for key, value in given.items() if key in vars(GenerationConfig()) and value is not None}
    greedy = {"do_sample": False} if given.get("do_sample") is False else {}
    return greedy | biasing(GenerationConfig(**known)) | {name: given[name] for name in _OF_VLLM if given.get(name)}


@lru_cache
def _tell(settings: str, remedy: str) -> None:
    logger.warning(
        "Rollouts are drawn with %s, from another distribution than that whose log-probabilities the loss takes. %s "
        "for unbiased gradients.",
        settings,
        remedy,
    )

"""The models that say what the tokens of a multi-token training weigh: a value model, or a reference."""

from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hpt_trl.errors import UserError
from hpt_trl.methods.mtp.config import WeightedMTPConfig
from hpt_trl.methods.mtp.loss_weighing import LossWeighing
from hpt_trl.methods.mtp.token_weighing import TokenWeighing
from hpt_trl.methods.mtp.weighing import Weighing
from hpt_trl.token_scores.cache import WithScores
from hpt_trl.token_scores.reference import check_reference
from hpt_trl.token_scores.reference_scores import reference_cache, reference_scorer
from hpt_trl.token_scores.values import value_cache, value_scorer
from hpt_trl.token_scores.weighting_checks import check_weighting


def check_frozen_models(config: WeightedMTPConfig, tokenizer: PreTrainedTokenizerBase, *, model: str | None) -> None:
    """Refuse a value model or a reference that cannot judge the trained model's tokens; no weights are loaded.

    Raises:
        UserError: there is none, or it has another tokenizer; the message starts with the key.
    """
    check_weighting(config, tokenizer, model=model)
    if config.needs_reference:
        check_reference(config, tokenizer, model=model)


def weighing_of(
    config: WeightedMTPConfig, tokenizer: PreTrainedTokenizerBase, rows: Any, collator: Any, accelerator: Accelerator
) -> Weighing | None:
    """Open the frozen models that a `weighting` needs, or the caches of what they say.

    Args:
        config: the trainer's.
        tokenizer: of the trained model.
        rows: the prepared training rows, for the caches.
        collator: the trainer's.
        accelerator: the trainer's.

    Returns:
        What weighs the tokens; None where all weigh alike.

    Raises:
        UserError: a cache that cannot be used.
    """
    device = accelerator.device
    if config.needs_reference:
        if config.reference_mode == "cached":
            cache = reference_cache(config, tokenizer, _sized(rows), collator, device=device)
            return LossWeighing(config, WithScores(collator, cache), accelerator)
        return LossWeighing(config, collator, accelerator, reference_scorer(config, device))
    if config.needs_values:
        if config.value_mode == "cached":
            cache = value_cache(config, tokenizer, _sized(rows), collator, device=device)
            return TokenWeighing(config, tokenizer, WithScores(collator, cache), accelerator)
        return TokenWeighing(config, tokenizer, collator, accelerator, value_scorer(config, device))
    return TokenWeighing(config, tokenizer, collator, accelerator) if config.weighting == "random_matched" else None


def _sized(rows: Any) -> Dataset:
    if not isinstance(rows, Dataset):
        raise UserError(
            "`value_mode: cached` and `reference_mode: cached` score a dataset with a length; use `online`."
        )
    return rows

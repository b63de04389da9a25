"""Values of a frozen value model: found and compared without weights, of a batch, and of a data set in its cache."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from hpt_trl.errors import UserError
from hpt_trl.models.digests import digest_of_files
from hpt_trl.models.folders import VALUE_CONFIG_FILE, is_value_model
from hpt_trl.models.hub_parts import value_model_folder
from hpt_trl.models.sharded_weights import whole_weights
from hpt_trl.models.value_model import ValueModel, load_value_model, why_no_value
from hpt_trl.token_scores.cache import ScoreCache
from hpt_trl.token_scores.config import ValueScoresConfig
from hpt_trl.token_scores.kinds import VALUES
from hpt_trl.token_scores.scoring import Scorer, autocast_of, prepare_cache
from hpt_trl.token_scores.sources import Source, preparation, source_of

MODEL_KEY = "value_model_name_or_path"


def check_value_model(
    config: ValueScoresConfig, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, *, model: str | None
) -> None:
    """Refuse a value model that cannot value the trained model's tokens; no weights are loaded.

    Args:
        tokenizer: of the trained model.
        model: its name, where it has one.

    Raises:
        UserError: there is no such model, its values would all be the same, or its scores are no values, its tokenizer
            is another one, or the trained model reads images. The message starts with the key.
    """
    if isinstance(tokenizer, ProcessorMixin):
        raise UserError(
            f"{MODEL_KEY}: no value model goes with {model or 'the trained model'}: it has a processor, and values of "
            "images are not supported. Name a text model as `model_name_or_path`."
        )
    source = value_source(config.value_model_name_or_path, trust_remote_code=config.trust_remote_code)
    kinds = check_scores(source).architectures or []
    if not is_value_model(source.name) and not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise source.error(
            f"is no value model ({kinds[0] if kinds else 'of an unknown kind'}), so that all values would be the same; "
            "name the output of `stage: critic`, or a reward model."
        )
    source.check_tokens(
        config,
        tokenizer,
        what="its values would be those of other tokens",
        remedy="Name a value model that `stage: critic` made of a model with the same tokenizer.",
    )


def check_scores(source: Source) -> PretrainedConfig:
    """Refuse a sequence classifier whose scores are no values, and return the config; no weights are loaded.

    Raises:
        UserError: there is no such model, or it has several scores or another head. The message starts with the key.
    """
    config = source.load_config()
    reason = None if is_value_model(source.name) else why_no_value(config, **source.settings)
    if reason is not None:
        raise source.error(reason)
    return config


def value_source(name: str | None, *, trust_remote_code: bool = False) -> Source:
    """Find where a value model comes from.

    Raises:
        UserError: it is a folder that is not there or holds no model, or the adapter of another kind of model.
    """
    source = source_of(value_model_folder(str(name)), MODEL_KEY, trust_remote_code=trust_remote_code)
    if source.adapter is not None and not is_value_model(source.name):
        raise source.error(
            "is the adapter of a model that is no value model; name the output of `stage: critic`, or merge a reward "
            f"model's adapter (`hpt-trl merge {source.name} OUT`), and name OUT."
        )
    return source


def load_frozen(config: ValueScoresConfig, device: torch.device) -> ValueModel:
    """Load the value model, frozen and without dropout; each process has a whole copy."""
    with whole_weights():
        model = load_value_model(
            str(config.value_model_name_or_path),
            trainable=False,
            dtype=config.value_dtype,
            trust_remote_code=config.trust_remote_code,
        )
    # Packed rows need a kernel that ends attention with each document, as the trained model's does.
    attention = dict(config.model_init_kwargs or {}).get("attn_implementation")  # type: ignore[arg-type]
    if attention is not None:
        model.set_attn_implementation(attention)
    model.requires_grad_(False)
    return model.to(device).eval()


@torch.no_grad()
def token_values(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Return the values of a batch: V after each token, 0 where neither it nor the next one has a label.

    Args:
        model: the value model, in evaluation mode.
        batch: from SFTTrainer's collator, on the model's device.

    Returns:
        (rows, tokens), in the type of the cache.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    values = model(**inputs).token_values * VALUES.positions(batch["labels"])
    return values.to(VALUES.torch_dtype)


def value_scorer(config: ValueScoresConfig, device: torch.device) -> Scorer:
    """The value model of a run, loaded when it is first asked."""
    return Scorer(VALUES, lambda: load_frozen(config, device), token_values, device, autocast_of(config, device))


def value_cache(
    config: ValueScoresConfig,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    *,
    device: torch.device,
) -> ScoreCache:
    """Open the cache of a run's value model and fill it, see `prepare_cache`.

    Args:
        tokenizer: of the trained model.
        dataset: prepared rows (`input_ids`, `labels`, `seq_lengths` where they are packed).
        collator: the trainer's.
        device: of this process.

    Raises:
        UserError: no room on the disk, a cache whose values are not this model's, or a value that is not finite.
    """
    return prepare_cache(
        value_scorer(config, device),
        config,
        lambda autocast: fingerprint(config, tokenizer, autocast=autocast),
        dataset,
        collator,
    )


def fingerprint(
    config: ValueScoresConfig, tokenizer: PreTrainedTokenizerBase, *, autocast: str | None
) -> dict[str, Any]:
    """Return what the values depend on, by name; contents that are equal mean equal values of a row.

    Args:
        autocast: type that the forward pass runs in, None without autocast.

    Raises:
        UserError: the value model is not there.
    """
    source = value_source(config.value_model_name_or_path, trust_remote_code=config.trust_remote_code)
    head = Path(source.name) / Path(VALUE_CONFIG_FILE).parent
    return {
        **source.digests(),
        "head": digest_of_files(head, ("value_head.*",)) if is_value_model(source.name) else None,
        "dtype": config.value_dtype,
        **preparation(config, tokenizer, autocast=autocast),
    }

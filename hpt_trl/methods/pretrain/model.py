"""The config of a model that does not exist yet, checked as far as it goes without its weights."""

from typing import Any, cast

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hpt_trl.data.names import as_dict
from hpt_trl.errors import UserError
from hpt_trl.methods.pretrain.config import PretrainArguments
from hpt_trl.models.dropout import check_dropouts
from hpt_trl.models.loading import load_config
from hpt_trl.models.sharded_weights import whole_weights
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.settings.values import did_you_mean

# The tokenizer decides them; a second opinion in the recipe could only contradict it.
_OF_THE_TOKENIZER = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_model_config(recipe: Recipe) -> None:
    """Check the keys that describe the model.

    Raises:
        UserError: there is no config, no such kind of model, or a field that its config does not have.
    """
    _fields(recipe)


def make_config(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Return the config of the new model, fitted to the tokenizer.

    Raises:
        UserError: a vocabulary that the tokenizer does not fit into, blocks longer than the model takes, or values
            that the model's class refuses.
    """
    name, fields = _fields(recipe)
    key = "model_config" if recipe.arguments.model_config else "model_config_name_or_path"  # type: ignore[attr-defined]
    tokens = len(tokenizer)
    vocabulary = fields.get("vocab_size", tokens)
    if not isinstance(vocabulary, int) or vocabulary < tokens:
        raise recipe.error(
            "model_config",
            f"`vocab_size: {vocabulary}`, but the tokenizer has {tokens} tokens; drop it, or write more.",
        )
    fields |= {"vocab_size": vocabulary} | {token: getattr(tokenizer, token) for token in _OF_THE_TOKENIZER}
    try:
        if name is None:
            config = AutoConfig.for_model(**fields)
        else:
            config = load_config(name)
            for field, value in fields.items():
                setattr(config, field, value)
        check_dropouts(config.to_dict())
        with whole_weights(), torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    # Whatever a model's class says of impossible sizes: each one says it in its own way.
    except Exception as error:
        raise recipe.error(key, f"a model cannot be made from it: {type(error).__name__}: {error}") from error
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and recipe.config.max_length > longest:
        raise recipe.error(
            "max_length", f"blocks of {recipe.config.max_length} tokens, but `max_position_embeddings` is {longest}."
        )
    return cast(PretrainedConfig, config)


def new_model(config: PretrainedConfig, *, dtype: str | None, attention: str | None) -> Any:
    """Return the model with random weights of the current seed, the same in one process and in many.

    Each process draws all of them; ZeRO-3 and FSDP share them out afterwards.
    """
    weights = torch.float32 if dtype in (None, "auto") else getattr(torch, str(dtype))
    with whole_weights():
        return AutoModelForCausalLM.from_config(config, dtype=weights, attn_implementation=attention)


def _fields(recipe: Recipe) -> tuple[str | None, dict[str, Any]]:
    """The model whose config is taken, if any, and the fields that the recipe sets."""
    arguments = cast(PretrainArguments, recipe.arguments)
    name = arguments.model_config_name_or_path
    try:
        fields = dict(as_dict(arguments.model_config, "model_config"))
    except UserError as error:
        raise recipe.error("model_config", str(error).removeprefix("model_config: ")) from error
    if name is None:
        if not fields:
            raise recipe.error(
                "model_config",
                "a model from random weights needs it: write e.g. {model_type: llama, hidden_size: 128, "
                "intermediate_size: 384, num_hidden_layers: 4, num_attention_heads: 4}, or name a "
                "`model_config_name_or_path`.",
            )
        kind = str(fields.get("model_type"))
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind not in CONFIG_MAPPING:
            meant = did_you_mean(kind, list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
            raise recipe.error(
                "model_config",
                f"`model_type: {kind}` is no language model of Transformers.{meant} Write e.g. llama, qwen3 or gpt2.",
            )
        known: PretrainedConfig = CONFIG_MAPPING[kind]()
    else:
        try:
            known = load_config(name)
        except UserError as error:
            message = str(error).removeprefix("model_name_or_path: ")
            raise recipe.error("model_config_name_or_path", message) from error
        if fields.get("model_type", known.model_type) != known.model_type:
            raise recipe.error(
                "model_config", f"`model_type: {fields['model_type']}`, but {name} is a {known.model_type}; drop it."
            )
        fields.pop("model_type", None)
    for field in fields:
        if field in _OF_THE_TOKENIZER:
            raise recipe.error("model_config", f"`{field}` comes from the tokenizer; drop it.")
        # A config keeps any name that it is given, and the model then never asks for it.
        if field != "model_type" and not hasattr(known, field):
            meant = did_you_mean(field, [name for name in known.to_dict() if not name.startswith("_")])
            raise recipe.error("model_config", f"{known.model_type} has no `{field}`.{meant}")
    return name, fields

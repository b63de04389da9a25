"""A reference model: found and compared without weights, loaded frozen, and told from others by a digest."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from trl.trainer.utils import add_fused_lm_head

from hpt_trl.errors import UserError
from hpt_trl.files import cache_folder
from hpt_trl.models.adapters import keep_four_bit_trainable
from hpt_trl.models.built_in import BUILT_IN
from hpt_trl.models.folders import is_value_model
from hpt_trl.models.loading import load_config
from hpt_trl.models.padding_free.language_models import pad_no_more
from hpt_trl.models.padding_free.settings import pads_no_more
from hpt_trl.models.sharded_weights import spare_from_gathering, whole_weights
from hpt_trl.models.whole_models import load_whole
from hpt_trl.token_scores.config import ReferenceConfig
from hpt_trl.token_scores.sources import Source, preparation, source_of

MODEL_KEY = "reference_model_name_or_path"


def check_reference(
    config: ReferenceConfig, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, *, model: str | None
) -> None:
    """Refuse a reference that cannot be compared with the trained model; no weights are loaded.

    Args:
        tokenizer: of the trained model.
        model: its name, where it has one.

    Raises:
        UserError: there is no such reference, it is a reward model or too short, its tokenizer is another one, or the
            trained model reads images. The message starts with the key.
    """
    if isinstance(tokenizer, ProcessorMixin):
        raise UserError(
            f"{MODEL_KEY}: no reference goes with {model or 'the trained model'}: it has a processor, and "
            "the comparison of tokens does not support images. Name a text model as `model_name_or_path`."
        )
    source = _source(config)
    kinds = source.load_config().architectures or []
    if any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise source.error(f"is a reward model ({kinds[0]}), which gives no token a loss; name a language model.")
    source.check_tokens(
        config,
        tokenizer,
        what="their losses are those of different tokens",
        remedy="Name a model with the same tokenizer, e.g. one that `stage: ref_tuning` made of the same base.",
    )


def is_trained_model(config: ReferenceConfig, model: str | None) -> bool:
    """Whether the reference is the model that is trained: until it has learnt, no token's loss differs.

    Args:
        model: name of the trained model, where it has one.
    """
    source = _source(config)
    whole = source.adapter is None and source.revision is None
    return whole and bool(model) and _place(source.name) == _place(str(model))


def load_reference(config: ReferenceConfig, device: torch.device) -> PreTrainedModel:
    """Load the reference, frozen and without dropout; each process has a whole copy.

    An adapter stays an adapter: added to weights of half precision, small changes would be lost.

    It takes `fused_lm_head=True` (`trl.trainer.utils.add_fused_lm_head`) and then returns log-probabilities alone.
    """
    source = _source(config)
    # Packed rows need a kernel that ends attention with each document, as the trained model's does.
    attention = dict(config.model_init_kwargs or {}).get("attn_implementation")  # type: ignore[arg-type]

    def ready(base: Any) -> None:
        if attention is not None:
            base.set_attn_implementation(attention)
        # Repacked for a CPU, layers narrower than a block of 4-bit weights fail.
        keep_four_bit_trainable(base)
        add_fused_lm_head(base)
        if pads_no_more(config):
            pad_no_more(base)

    with whole_weights():
        model: Any = load_whole(
            AutoModelForCausalLM.from_pretrained,
            source.base,
            adapter=None if source.adapter is None else source.folder,
            adapter_settings={"torch_device": str(device)},
            ready=ready,
            dtype=config.reference_dtype,
            quantization_config=_four_bit(config, source),
            device_map={"": device},
            **source.settings,
        )
    spare_from_gathering(model)
    model.requires_grad_(False)
    return model.eval()


def fingerprint(config: ReferenceConfig, tokenizer: PreTrainedTokenizerBase, *, autocast: str | None) -> dict[str, Any]:
    """Return what the reference's scores depend on, by name; values that are equal mean equal scores of a row.

    Args:
        autocast: type that the forward pass runs in, None without autocast.

    Raises:
        UserError: the reference is not there.
    """
    return {
        **_source(config).digests(),
        "dtype": config.reference_dtype,
        "load_in_4bit": config.reference_load_in_4bit,
        **preparation(config, tokenizer, autocast=autocast),
    }


def _source(config: ReferenceConfig) -> Source:
    """Where the reference comes from.

    Raises:
        UserError: it is a folder that is not there or holds no model, or an adapter that cannot be a reference.
    """
    source = source_of(
        str(config.reference_model_name_or_path),
        MODEL_KEY,
        revision=config.reference_model_revision,
        trust_remote_code=config.trust_remote_code,
    )
    if config.reference_load_in_4bit and find_spec("bitsandbytes") is None:
        raise UserError("reference_load_in_4bit: true needs bitsandbytes: pip install 'hpt-trl[quantization]'")
    if is_value_model(source.folder):
        raise source.error("is a value model, which gives no token a loss; name a language model.")
    if source.adapter is None:
        return source
    if source.adapter.task_type == "SEQ_CLS":
        raise source.error("is the adapter of a reward model, which gives no token a loss; name a language model's.")
    if _adapts_head(source.adapter):
        raise source.error(
            "adapts `lm_head`, and the losses are computed with the weights of the head alone. Merge it with "
            f"`hpt-trl merge {source.name} OUT`, and name OUT."
        )
    return source


def _adapts_head(adapter: PeftConfig) -> bool:
    """Whether PEFT puts a layer of its own in place of the head."""
    targets = getattr(adapter, "target_modules", None) or ()
    if isinstance(targets, str):
        # A pattern of whole names.
        targets = ["lm_head"] if re.fullmatch(targets, "lm_head") else []
    names = [*targets, *(getattr(adapter, "modules_to_save", None) or ())]
    return any(name.split(".")[-1] == "lm_head" for name in names)


def _place(name: str) -> str:
    """What is equal for two names of one model."""
    if name in BUILT_IN:
        return str((cache_folder() / BUILT_IN[name].folder).resolve())
    return str(Path(name).resolve()) if Path(name).exists() else name


def _four_bit(config: ReferenceConfig, source: Source) -> BitsAndBytesConfig | None:
    if not config.reference_load_in_4bit:
        return None
    auto = config.reference_dtype == "auto"
    compute = load_config(source.base, **source.settings).dtype if auto else config.reference_dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute or torch.float32,
    )

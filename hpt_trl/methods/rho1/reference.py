"""The reference model of Rho-1: found and compared without weights, loaded frozen, and told from others by a digest."""

import copy
import hashlib
import json
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import find_adapter_config_file
from transformers.utils.hub import cached_file, extract_commit_hash
from trl.trainer.utils import add_fused_lm_head

from hpt_trl.errors import UserError
from hpt_trl.methods.rho1 import tokenizers
from hpt_trl.methods.rho1.config import Rho1Config
from hpt_trl.models.adapters import keep_four_bit_trainable
from hpt_trl.models.built_in import BUILT_IN, cache_folder
from hpt_trl.models.folders import check_model_folder, is_adapter
from hpt_trl.models.loading import load_config, load_tokenizer, model_exists, resolve_model
from hpt_trl.models.sharded_weights import spare_from_gathering, whole_weights

MODEL_KEY = "reference_model_name_or_path"

# What `from_pretrained` reads of a folder; a run leaves other files beside them.
_MODEL_FILES = ("config.json", "model*.safetensors", "pytorch_model*.bin")
_ADAPTER_FILES = ("adapter_model.*",)
# Settings that decide what a row is and where in it a loss is taken.
_PREPARATION = (
    "max_length",
    "truncation_mode",
    "padding_free",
    "completion_only_loss",
    "assistant_only_loss",
)


@dataclass(frozen=True)
class _Source:
    """Where a reference comes from: a model, or the adapter over one."""

    base: str
    revision: str | None
    adapter: str | None
    trust_remote_code: bool

    @property
    def settings(self) -> dict[str, Any]:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def check_reference(
    config: Rho1Config, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, *, model: str | None
) -> None:
    """Refuse a reference that cannot be compared with the trained model; no weights are loaded.

    Args:
        tokenizer: of the trained model.
        model: its name, where it has one.

    Raises:
        UserError: there is no such reference, it is a reward model, too short or the trained model itself, its
            tokenizer is another one, or the trained model reads images. The message starts with the key.
    """
    if isinstance(tokenizer, ProcessorMixin):
        raise UserError(
            f"{MODEL_KEY}: no reference goes with {model or 'the trained model'}: it has a processor, and Rho-1 does "
            "not support images. Name a text model as `model_name_or_path`."
        )
    name, source = str(config.reference_model_name_or_path), _source(config)
    reference = _load_config(source, name)
    kinds = reference.architectures or []
    if any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise _error(name, f"is a reward model ({kinds[0]}), which gives no token a loss; name a language model.")
    ours = tokenizer
    if config.eos_token in tokenizer.get_vocab():
        # The trainer sets it later; a reference that was tuned with this key was saved with it.
        ours = copy.deepcopy(tokenizer)
        ours.eos_token = config.eos_token
    said = tokenizers.differences(ours, _load_tokenizer(source, name))
    if said:
        raise _error(
            name,
            "has another tokenizer than the trained model, so their losses are those of different tokens:\n  "
            + "\n  ".join(said)
            + "\nName a model with the same tokenizer, e.g. one that `stage: ref_tuning` made of the same base.",
        )
    limits = reference.get_text_config()
    if limits.vocab_size < len(ours):
        raise _error(name, f"has embeddings of {limits.vocab_size} tokens, but the tokenizer has {len(ours)}.")
    longest = limits.to_dict().get("max_position_embeddings")
    # Unpacked rows are rarely as long as they may be.
    if config.packing and longest is not None and config.max_length is not None and config.max_length > longest:
        raise _error(name, f"takes {longest} tokens, but `max_length` is {config.max_length}; lower it.")
    same = source.adapter is None and source.revision is None and model and _place(name) == _place(model)
    if same and config.selection == "excess" and config.selection_warmup_steps == 0:
        raise _error(
            name,
            "is the trained model itself: at the start no token's loss exceeds the reference's, and the selection is "
            "noise. Name a model that was tuned on good data (`stage: ref_tuning`), or train on all tokens first, "
            "e.g. `selection_warmup_steps: 100`.",
        )


def load_reference(config: Rho1Config, device: torch.device) -> PreTrainedModel:
    """Load the reference, frozen and without dropout; each process has a whole copy.

    An adapter stays an adapter: added to weights of half precision, small changes would be lost.

    It takes `fused_lm_head=True` (`trl.trainer.utils.add_fused_lm_head`) and then returns log-probabilities alone.
    """
    source = _source(config)
    # Packed rows need a kernel that ends attention with each document, as the trained model's does.
    attention = dict(config.model_init_kwargs or {}).get("attn_implementation")  # type: ignore[arg-type]
    with whole_weights():
        model: Any = AutoModelForCausalLM.from_pretrained(
            resolve_model(source.base),
            dtype=config.reference_dtype,
            quantization_config=_four_bit(config, source),
            device_map={"": device},
            **source.settings,
        )
        if attention is not None:
            model.set_attn_implementation(attention)
        # Repacked for a CPU, layers narrower than a block of 4-bit weights fail.
        keep_four_bit_trainable(model)
        add_fused_lm_head(model)
        if source.adapter is not None:
            model = PeftModel.from_pretrained(model, source.adapter, torch_device=str(device))
    spare_from_gathering(model)
    model.requires_grad_(False)
    return model.eval()


def fingerprint(config: Rho1Config, tokenizer: PreTrainedTokenizerBase, *, autocast: str | None) -> dict[str, Any]:
    """Return what the reference's scores depend on, by name; values that are equal mean equal scores of a row.

    Args:
        autocast: type that the forward pass runs in, None without autocast.

    Raises:
        UserError: the reference is not there.
    """
    source = _source(config)
    reference = _load_config(source, str(config.reference_model_name_or_path))
    return {
        "architecture": (reference.architectures or [reference.model_type])[0],
        "weights": _weights(source),
        "adapter": None if source.adapter is None else _adapter(Path(source.adapter)),
        "dtype": config.reference_dtype,
        "load_in_4bit": config.reference_load_in_4bit,
        "autocast": autocast,
        "tokenizer": tokenizers.digest(tokenizer),
        "packing": config.packing_strategy if config.packing else None,
        **{key: getattr(config, key) for key in _PREPARATION},
    }


def _source(config: Rho1Config) -> _Source:
    """Where the reference comes from.

    Raises:
        UserError: it is a folder that is not there or holds no model, or an adapter that cannot be a reference.
    """
    name = str(config.reference_model_name_or_path)
    check_model_folder(name, key=MODEL_KEY, adapters=True)
    if config.reference_load_in_4bit and find_spec("bitsandbytes") is None:
        raise UserError("reference_load_in_4bit: true needs bitsandbytes: pip install 'hpt-trl[quantization]'")
    if not is_adapter(name):
        return _Source(name, config.reference_model_revision, None, config.trust_remote_code)
    adapter = PeftConfig.from_pretrained(name)
    if adapter.task_type == "SEQ_CLS":
        raise _error(name, "is the adapter of a reward model, which gives no token a loss; name a language model's.")
    if adapter.is_prompt_learning:
        raise _error(name, "puts learnt tokens before each row (prompt learning); name a LoRA adapter.")
    if _adapts_head(adapter):
        raise _error(
            name,
            "adapts `lm_head`, and the losses are computed with the weights of the head alone. Merge it with "
            f"`hpt-trl merge {name} OUT`, and name OUT.",
        )
    return _Source(str(adapter.base_model_name_or_path), adapter.revision, name, config.trust_remote_code)


def _load_config(source: _Source, name: str) -> PretrainedConfig:
    """The config of the reference, of an adapter's base; sees that weights are there."""
    try:
        model_exists(source.base, **source.settings)
        return load_config(source.base, **source.settings)
    except UserError as error:
        if source.adapter is None and _is_hub_adapter(source):
            raise _error(
                name,
                "is an adapter on the Hub; adapters must be local folders. Download it (`hf download "
                f"{name} --local-dir FOLDER`), and name the folder.",
            ) from error
        message = str(error).removeprefix("model_name_or_path: ")
        base = "" if source.adapter is None else f"the base model of the adapter {name}: "
        raise UserError(f"{MODEL_KEY}: {base}{message}") from error


def _load_tokenizer(source: _Source, name: str) -> PreTrainedTokenizerBase:
    try:
        # A run with an adapter leaves its tokenizer beside it; an adapter from elsewhere may come without.
        if source.adapter is not None and (Path(source.adapter) / "tokenizer_config.json").is_file():
            return AutoTokenizer.from_pretrained(source.adapter, trust_remote_code=source.trust_remote_code)
        loaded = load_tokenizer(source.base, **source.settings)
        return loaded.tokenizer if isinstance(loaded, ProcessorMixin) else loaded  # type: ignore[attr-defined]
    except (UserError, OSError, ValueError) as error:
        message = str(error).strip().removeprefix("model_name_or_path: ")
        raise UserError(f"{MODEL_KEY}: {message}") from error


def _adapts_head(adapter: PeftConfig) -> bool:
    """Whether PEFT puts a layer of its own in place of the head."""
    targets = getattr(adapter, "target_modules", None) or ()
    if isinstance(targets, str):
        # A pattern of whole names.
        targets = ["lm_head"] if re.fullmatch(targets, "lm_head") else []
    names = [*targets, *(getattr(adapter, "modules_to_save", None) or ())]
    return any(name.split(".")[-1] == "lm_head" for name in names)


def _is_hub_adapter(source: _Source) -> bool:
    try:
        return find_adapter_config_file(source.base, revision=source.revision) is not None
    except OSError:
        return False


def _place(name: str) -> str:
    """What is equal for two names of one model."""
    if name in BUILT_IN:
        return str((cache_folder() / BUILT_IN[name].folder).resolve())
    return str(Path(name).resolve()) if Path(name).exists() else name


def _four_bit(config: Rho1Config, source: _Source) -> BitsAndBytesConfig | None:
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


def _weights(source: _Source) -> str:
    """A digest of the model's files; on the Hub the commit is one."""
    if source.base in BUILT_IN or Path(source.base).is_dir():
        return _digest(Path(resolve_model(source.base)), _MODEL_FILES)
    commit = extract_commit_hash(cached_file(source.base, "config.json", revision=source.revision), None)
    if commit is None:
        raise _error(source.base, "has no commit to tell its versions apart; download it and name the folder.")
    return f"commit {commit}"


def _adapter(folder: Path) -> str:
    """A digest of an adapter; where its base lies does not matter."""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    settings.pop("base_model_name_or_path", None)
    said = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()
    return f"{_digest(folder, _ADAPTER_FILES)} with settings {said}"


def _digest(folder: Path, patterns: tuple[str, ...]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").digest()
        total.update(path.name.encode() + b"\0" + content)
    return total.hexdigest()


def _error(name: str, message: str) -> UserError:
    return UserError(f"{MODEL_KEY}: {name} {message}")

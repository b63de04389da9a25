"""What a recipe says of how its model is loaded, tried on the architecture before any weight is read."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt_trl.models.folders import is_local
from hpt_trl.models.parameters import build_on_meta
from hpt_trl.recipes.loading import LOADING
from hpt_trl.settings.values import did_you_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hpt_trl.recipes.recipe import Recipe

# Ways to spread a model over devices that Transformers knows.
_SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")


def check_model_settings(recipe: "Recipe", model_config: "PretrainedConfig") -> None:
    """Check `attn_implementation`, `padding_free` and `model_init_kwargs`.

    Raises:
        UserError: what the model cannot be loaded with, or rows that would see each other.
    """
    from trl import DPOConfig, SFTConfig

    given = recipe.setting("model_init_kwargs") or {}
    settings = dict(json.loads(given) if isinstance(given, str) else given)
    attention = settings.get("attn_implementation") or recipe.model_args.attn_implementation
    _check_attention(recipe, model_config, attention)
    if recipe.setting("padding_free", False) and isinstance(recipe.config, SFTConfig | DPOConfig):
        _check_padding_free(recipe, attention)
    for key in ("dtype", "torch_dtype"):
        _check_dtype(recipe, settings.get(key))
    _check_devices(recipe, settings.get("device_map"))
    _check_experts(recipe, settings.get("experts_implementation"))
    _check_variant(recipe, settings.get("variant"))
    if quantization := settings.get("quantization_config"):
        _check_quantization(recipe, quantization)
    fields = {name: value for name, value in settings.items() if name not in LOADING}
    if fields:
        _check_fields(recipe, model_config, fields)


def _check_attention(recipe: "Recipe", model_config: "PretrainedConfig", attention: str | None) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # Kernels of the Hub are named by their repository.
    known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    if attention is not None and "/" not in attention and attention not in known:
        key = "attn_implementation" if recipe.model_args.attn_implementation == attention else "model_init_kwargs"
        raise recipe.error(
            key, f"{attention!r:.80} is no attention; allowed: {', '.join(known)}.{did_you_mean(attention, known)}"
        )


def _check_padding_free(recipe: "Recipe", attention: str | None) -> None:
    if not str(attention).startswith("flash_attention") and "/" not in str(attention):
        raise recipe.error(
            "padding_free",
            "true: the rows of a batch lie behind one another, and only FlashAttention keeps them apart; write "
            "`attn_implementation: flash_attention_2`, or drop it: no padding is computed then either.",
        )
    if not recipe.setting("packing", False) and recipe.setting("max_length") is not None:
        raise recipe.error(
            "padding_free", "true: rows are then not cut at `max_length`; write `max_length: null`, or `packing: true`."
        )


def _check_dtype(recipe: "Recipe", dtype: Any) -> None:
    import torch

    if dtype not in (None, "auto") and not isinstance(getattr(torch, str(dtype), None), torch.dtype):
        raise recipe.error("model_init_kwargs", f"`dtype: {dtype!r:.80}` is none; allowed: auto, float32, bfloat16, …")


def _check_devices(recipe: "Recipe", given: Any) -> None:
    """Whether the devices are there, and can hold weights that are trained."""
    import torch

    if given in _SPREADING:
        if recipe.stage.trains and recipe.world_size > 1:
            raise recipe.error(
                "model_init_kwargs",
                f"`device_map: {given}`: each of several processes holds a model of its own; drop it.",
            )
        return
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    for name in given.values() if isinstance(given, dict) else [] if given is None else [given]:
        try:
            if name == "disk" and isinstance(given, dict) and not recipe.stage.trains:
                continue
            device = torch.device(name)
        except (RuntimeError, TypeError):
            device = None
        if device is not None and device.type == "cpu":
            continue
        if device is None or accelerator is None or device.type != accelerator.type:
            there = "cpu" if accelerator is None else f"{accelerator.type}, cpu"
            raise recipe.error(
                "model_init_kwargs",
                f"`device_map: {name!r:.80}` is no device here; allowed: {', '.join(_SPREADING)}, {there}.",
            )
        if (device.index or 0) >= torch.accelerator.device_count():
            raise recipe.error(
                "model_init_kwargs",
                f"`device_map: {name!r:.80}`: there are {torch.accelerator.device_count()} devices, counted from 0.",
            )


def _check_experts(recipe: "Recipe", given: str | None) -> None:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    known = ["eager", *ALL_EXPERTS_FUNCTIONS.valid_keys()]
    if given is not None and given not in known:
        raise recipe.error(
            "model_init_kwargs",
            f"`experts_implementation: {given!r:.60}` is none; allowed: {', '.join(known)}."
            f"{did_you_mean(given, known)}",
        )


def _check_variant(recipe: "Recipe", variant: str | None) -> None:
    model = recipe.model_args.model_name_or_path
    if not variant or not model or not is_local(model):
        return
    # As Transformers names them; those of several files have a number between.
    folder = Path(model).expanduser()
    if not any(f".{variant}." in file.name or f".{variant}-" in file.name for file in folder.iterdir()):
        raise recipe.error(
            "model_init_kwargs", f"`variant: {variant:.80}`: {folder} has no weights of that name; drop it."
        )


def _check_quantization(recipe: "Recipe", given: dict[str, Any]) -> None:
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        AutoHfQuantizer.from_config(given, pre_quantized=False).validate_environment(device_map=None)
    except (ImportError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        said = str(error).replace("\n", " ")
        raise recipe.error(
            "model_init_kwargs",
            f"`quantization_config` is not taken: {said:.300}; for bitsandbytes write `load_in_4bit: true`.",
        ) from error
    if recipe.stage.trains and not recipe.model_args.use_peft:
        raise recipe.error(
            "model_init_kwargs",
            "`quantization_config`: quantized weights are frozen, so that an adapter has to be trained; add "
            "`use_peft: true`.",
        )


def _check_fields(recipe: "Recipe", model_config: "PretrainedConfig", fields: dict[str, Any]) -> None:
    """Whether the model's config has the fields, takes the values, and still describes the weights that are there."""
    from huggingface_hub.errors import StrictDataclassError

    kind = type(model_config).__name__
    try:
        changed, unknown = type(model_config).from_dict(model_config.to_dict(), return_unused_kwargs=True, **fields)
    except (StrictDataclassError, TypeError, ValueError, AttributeError) as error:
        said = str(error).replace("\n", " ")
        raise recipe.error("model_init_kwargs", f"the model does not take it: {said:.300}") from error
    for name in unknown:
        known = [*model_config.to_dict(), *LOADING]
        raise recipe.error(
            "model_init_kwargs",
            f"`{name:.80}` is neither a field of {kind} nor of `from_pretrained`; drop it.{did_you_mean(name, known)}",
        )
    try:
        wanted = dict(build_on_meta(changed, scores=recipe.stage.scores).named_parameters())
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, ZeroDivisionError) as error:
        said = str(error).replace("\n", " ")
        raise recipe.error("model_init_kwargs", f"no model can be made with it: {said:.300}") from error
    for name, there in build_on_meta(model_config, scores=recipe.stage.scores).named_parameters():
        if name in wanted and wanted[name].shape != there.shape:
            raise recipe.error(
                "model_init_kwargs",
                f"with it `{name}` has the shape {tuple(wanted[name].shape)}, but that of the model is "
                f"{tuple(there.shape)}; a trained model keeps its sizes.",
            )

"""What a recipe says of how its model is loaded, tried on the architecture before any weight is read."""

import json
from typing import TYPE_CHECKING, Any

from hpt_trl.models.parameters import build_on_meta
from hpt_trl.settings.values import did_you_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hpt_trl.recipes.recipe import Recipe

# What `from_pretrained` takes beside the fields of a model's config; Transformers lists it nowhere.
LOADING = (
    *("state_dict", "proxies", "tqdm_class", "output_loading_info", "dtype", "torch_dtype", "device_map", "max_memory"),
    *("offload_folder", "offload_buffers", "quantization_config", "subfolder", "variant", "adapter_kwargs"),
    *("adapter_name", "generation_config", "gguf_file", "distributed_config", "device_mesh", "tp_plan", "tp_size"),
    *("trust_remote_code", "allow_all_kernels", "use_kernels", "kernel_config", "key_mapping", "attn_implementation"),
    *("experts_implementation", "config", "cache_dir", "ignore_mismatched_sizes", "force_download", "use_safetensors"),
    *("local_files_only", "token", "revision", "weights_only", "code_revision", "low_cpu_mem_usage", "fusion_config"),
    "disable_mmap",
)


def check_model_settings(recipe: "Recipe", model_config: "PretrainedConfig") -> None:
    """Check `attn_implementation`, `padding_free` and `model_init_kwargs`.

    Raises:
        UserError: what the model cannot be loaded with, or rows that would see each other.
    """
    given = recipe.setting("model_init_kwargs") or {}
    settings = dict(json.loads(given) if isinstance(given, str) else given)
    attention = settings.get("attn_implementation") or recipe.model_args.attn_implementation
    _check_attention(recipe, model_config, attention)
    if recipe.setting("padding_free", False):
        _check_padding_free(recipe, attention)
    for key in ("dtype", "torch_dtype"):
        _check_dtype(recipe, settings.get(key))
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
            "`attn_implementation: flash_attention_2`, or drop it.",
        )
    if not recipe.setting("packing", False) and recipe.setting("max_length") is not None:
        raise recipe.error(
            "padding_free", "true: rows are then not cut at `max_length`; write `max_length: null`, or `packing: true`."
        )


def _check_dtype(recipe: "Recipe", dtype: Any) -> None:
    import torch

    if dtype not in (None, "auto") and not isinstance(getattr(torch, str(dtype), None), torch.dtype):
        raise recipe.error("model_init_kwargs", f"`dtype: {dtype!r:.80}` is none; allowed: auto, float32, bfloat16, …")


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

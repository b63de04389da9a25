"""What `model_init_kwargs` may hold beside the fields of a model's config, by the types that a recipe can write."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class _Kind(NamedTuple):
    """Types of a value, and what they are called."""

    types: tuple[type, ...]
    allowed: str


_SWITCH = _Kind((bool,), "true or false")
_TEXT = _Kind((str,), "a text")
_MAPPING = _Kind((dict,), "a mapping")
_DEVICES = _Kind((str, int, dict), "auto, a device such as cuda:0, or a mapping of modules to devices")
# Objects of Python, files that lie elsewhere than the model, or what accelerate and PEFT settle.
_NO_RECIPE = _Kind((), "")

# What `from_pretrained` takes; Transformers lists it nowhere.
LOADING: dict[str, _Kind] = {
    **dict.fromkeys(("offload_buffers", "trust_remote_code", "allow_all_kernels", "use_kernels"), _SWITCH),
    **dict.fromkeys(("ignore_mismatched_sizes", "force_download", "use_safetensors", "local_files_only"), _SWITCH),
    **dict.fromkeys(("weights_only", "low_cpu_mem_usage", "disable_mmap"), _SWITCH),
    **dict.fromkeys(("dtype", "torch_dtype", "offload_folder", "variant", "attn_implementation"), _TEXT),
    **dict.fromkeys(("experts_implementation", "cache_dir", "revision", "code_revision"), _TEXT),
    **dict.fromkeys(("proxies", "max_memory", "quantization_config", "key_mapping"), _MAPPING),
    "device_map": _DEVICES,
    "token": _Kind((str, bool), "a text"),
    **dict.fromkeys(("state_dict", "tqdm_class", "output_loading_info", "generation_config", "config"), _NO_RECIPE),
    **dict.fromkeys(("distributed_config", "device_mesh", "tp_plan", "tp_size", "kernel_config"), _NO_RECIPE),
    **dict.fromkeys(("adapter_kwargs", "adapter_name", "fusion_config"), _NO_RECIPE),
    **dict.fromkeys(("subfolder", "gguf_file"), _NO_RECIPE),
}
_INSTEAD = {
    "subfolder": "config, tokenizer and weights are read from one folder; write the folder itself as "
    "`model_name_or_path`",
    "gguf_file": "what is trained is read from safetensors; write a model that has them as `model_name_or_path`",
    **dict.fromkeys(("tp_plan", "tp_size", "device_mesh", "distributed_config"), "start it by `--accelerate fsdp2`"),
}


def loading_fault(settings: Mapping[str, Any]) -> str | None:
    """Why a recipe cannot load a model with these settings; None where nothing shows without the model."""
    for name, value in settings.items():
        kind = LOADING.get(name)
        if kind is None or value is None:
            continue
        if not kind.types:
            return f"`{name}` cannot be set by a recipe; {_INSTEAD.get(name, 'drop it')}."
        # Of Python's types, a truth is an integer too.
        if not isinstance(value, kind.types) or (isinstance(value, bool) and bool not in kind.types):
            return f"`{name}: {value!r:.80}` is not allowed; allowed: {kind.allowed}."
    if settings.get("code_revision") and not settings.get("trust_remote_code"):
        return "`code_revision` says whose code runs, which needs `trust_remote_code: true` beside it; drop it."
    return None

"""Tiny models of many families with random weights, for what has to work whatever the family."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

_SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
}
_GPT2: dict[str, Any] = {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_GPT2 |= {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}

# Family -> what its tiny config sets beside the common sizes.
DENSE: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 5.0},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 5.0},
    "mistral": {"sliding_window": 6},
    "gpt2": {},
    "gpt_neox": {},
    "phi": {},
    "phi3": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 6},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.5},
    "cohere2": {"head_dim": 8, "sliding_window": 6},
    "stablelm": {},
    "starcoder2": {},
    "smollm3": {},
    "nemotron": {},
    "glm4": {"head_dim": 8},
    "exaone4": {"sliding_window": 6},
    "minicpm3": _LATENT,
    "biogpt": {},
    "diffllama": {},
}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS | {"head_dim": 8},
    "olmoe": _EXPERTS,
    "gpt_oss": _EXPERTS | {"head_dim": 8, "sliding_window": 6},
    "deepseek_v3": _EXPERTS | _LATENT | {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
    "glm4_moe": _EXPERTS | {"head_dim": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
}
FAMILIES = DENSE | MIXTURES


def family_config(family: str, **changes: Any) -> PretrainedConfig:
    sizes = _GPT2 if family == "gpt2" else _SIZES
    return CONFIG_MAPPING[family](**(sizes | FAMILIES.get(family, {}) | {"initializer_range": 0.2} | changes))


def family_model(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """A model in evaluation mode: in float64, or where it has experts in float32, which their kernels want."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(family_config(family, **changes)).eval()
    return model if family in MIXTURES else model.double()

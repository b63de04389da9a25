"""Tiny checkpoints that ship layers for future tokens, as DeepSeek's, GLM's and Mellum's do, under their names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_layers import MtpModel

from tests.helpers.tiny import build_tokenizer

_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "moe_intermediate_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "initializer_range": 0.3,
}
# transformers knows the layers of the first two by their real numbers alone, 46 and 61.
KINDS: dict[str, dict[str, Any]] = {
    "glm4_moe": {"num_hidden_layers": 46, "first_k_dense_replace": 45, "head_dim": 8, "num_nextn_predict_layers": 1},
    "deepseek_v3": {
        "num_hidden_layers": 61,
        "first_k_dense_replace": 60,
        "num_nextn_predict_layers": 1,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
        "qk_head_dim": 8,
        "v_head_dim": 8,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
    },
    "mellum": {
        "num_hidden_layers": 2,
        "head_dim": 8,
        "num_nextn_predict_layers": 1,
        "mtp_layer_types": ["full_attention"],
        "mtp_mlp_layer_types": ["sparse"],
        "layer_types": ["full_attention"] * 2,
    },
}


def save_shipping_model(folder: str | Path, kind: str, *, shards: bool = False, **changes: Any) -> str:
    """Writes model, tokenizer and layers for future tokens; returns the folder as a string.

    Args:
        kind: one of `KINDS`.
        shards: in several files with an index.
        changes: other sizes of the config.
    """
    tokenizer = build_tokenizer()
    model, chain = shipping_model(kind, **changes)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    file = Path(folder) / "model.safetensors"
    own = {name: tensor for name, tensor in chain.state_dict().items() if name.startswith("layers.")}
    shipped: dict[str, torch.Tensor] = {}
    for name, tensor in own.items():
        rest = name.removeprefix("layers.0.")
        if rest.endswith("experts.gate_up_proj"):
            for number, expert in enumerate(tensor):
                for part, half in zip(("gate_proj", "up_proj"), expert.chunk(2), strict=True):
                    shipped[_named(kind, rest.replace("gate_up_proj", f"{number}.{part}.weight"))] = half
        elif rest.endswith("experts.down_proj"):
            for number, expert in enumerate(tensor):
                shipped[_named(kind, rest.replace("down_proj", f"{number}.down_proj.weight"))] = expert
        else:
            shipped[_named(kind, rest)] = tensor
    if kind == "deepseek_v3":
        # DeepSeek's own checkpoints hold copies of what the layer shares.
        shipped["model.layers.61.embed_tokens.weight"] = model.get_input_embeddings().weight
        shipped["model.layers.61.shared_head.head.weight"] = model.get_output_embeddings().weight
    tensors = {name: tensor.detach().clone() for name, tensor in shipped.items()}
    save_file(load_file(file) | tensors, file, metadata={"format": "pt"})
    if shards:
        _split(Path(folder))
    return str(folder)


def shipping_model(kind: str, layers: int = 1, **changes: Any) -> tuple[Any, MtpModel]:
    """A model in float32, and its chain of layers for future tokens; `changes` are of the config."""
    if not hasattr(CONFIG_MAPPING[kind](), "num_mtp_layers"):
        pytest.skip(f"this transformers has no layers for future tokens of {kind}")
    tokenizer = build_tokenizer()
    sizes = _SIZES | KINDS[kind] | {"vocab_size": len(tokenizer), "num_nextn_predict_layers": layers} | changes
    sizes |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes))
    chain = MtpModel(model, layers)
    for name, tensor in chain.layers.state_dict().items():
        # They come without values.
        tensor.normal_(std=0.3) if tensor.ndim > 1 else tensor.fill_(0.0 if name.endswith("bias") else 1.0)
    return model, chain


def _named(kind: str, rest: str) -> str:
    """The name in a checkpoint of the one layer's tensor."""
    if kind == "mellum":
        outside = {
            "eh_proj": "fc",
            "enorm": "pre_fc_norm_embedding",
            "hnorm": "pre_fc_norm_hidden",
            "post_norm": "norm",
        }
        head, _, tail = rest.partition(".")
        return f"mtp.{outside[head]}.{tail}" if head in outside else f"mtp.layers.0.{tail}"
    layer = f"model.layers.{KINDS[kind]['num_hidden_layers']}."
    rest = rest.replace("post_norm.", "shared_head.norm.") if rest.startswith("post_norm.") else rest
    return layer + rest.removeprefix("mtp_block.")


def _split(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names, files = sorted(tensors), {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        own = names[number::3]
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "model.safetensors").unlink()


def shipped_tensors(folder: str | Path, kind: str) -> dict[str, torch.Tensor]:
    """Tensors of the layers for future tokens, wherever in the folder they are; each is in one file only."""
    start = "mtp." if kind == "mellum" else f"model.layers.{KINDS[kind]['num_hidden_layers']}."
    found: dict[str, torch.Tensor] = {}
    for file in Path(folder).glob("*.safetensors"):
        own = {name: tensor for name, tensor in load_file(file).items() if name.startswith(start)}
        assert not own.keys() & found.keys()
        found |= own
    return found


def assert_drafts(folder: str | Path) -> None:
    """`use_mtp` works on the folder, and gives what greedy decoding gives."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)("What is 3 + 4?", return_tensors="pt")["input_ids"]
    given = {"max_new_tokens": 10, "do_sample": False}
    assert torch.equal(model.generate(ids, use_mtp=True, **given), model.generate(ids, **given))

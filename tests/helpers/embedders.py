"""Tiny models of sentence-transformers from random weights, saved and loaded as any other."""

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    ColQwen2Config,
    ColQwen2ForRetrieval,
    ColQwen2Processor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
)

from tests.helpers import tiny

_LAYERS = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny models' one, padding on the right: these models count positions from the first token."""
    tokenizer = tiny.build_tokenizer()
    tokenizer.padding_side = "right"
    return tokenizer


def save_text_embedder(folder: Path, *, seed: int = 0) -> str:
    """A one-layer BERT, which sentence-transformers gives a mean over its tokens."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    BertModel(_bert(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_cross_encoder(folder: Path) -> str:
    """The same with one number for a pair."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    BertForSequenceClassification(_bert(tokenizer, num_labels=1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _bert(tokenizer: PreTrainedTokenizerFast, **settings: int) -> BertConfig:
    positions = {"max_position_embeddings": 512, "pad_token_id": tokenizer.pad_token_id}
    return BertConfig(vocab_size=len(tokenizer), **positions, **_LAYERS, **settings)


def save_image_embedder(folder: Path) -> str:
    """A CLIP of one layer on either side."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 77, **ids, **_LAYERS}
    config = CLIPConfig(
        text_config=text, vision_config={"image_size": 32, "patch_size": 8, **_LAYERS}, projection_dim=16
    )
    CLIPModel(config).save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    return str(folder)


def save_colqwen2(folder: Path) -> str:
    """A ColQwen2 of one layer, with the layers that make vectors of its tokens."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]}
    )
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    tokens = {f"{key}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}
    torch.manual_seed(0)
    text = {
        "vocab_size": len(tokenizer),
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **_LAYERS,
    }
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 1, "patch_size": 14}
    vlm = Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)
    ColQwen2ForRetrieval(ColQwen2Config(vlm_config=vlm, embedding_dim=16)).save_pretrained(folder)
    processor = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=4 * 28 * 28)
    ColQwen2Processor(processor, tokenizer).save_pretrained(folder)
    return str(folder)

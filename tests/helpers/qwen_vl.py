"""A tiny Qwen2.5-VL with its own chat template and M-RoPE, whose processor reads images alone.

The processor of transformers also holds one for videos, which needs torchvision. What is left out here is that part:
images, their placeholders and the grid are the library's own code.
"""

from pathlib import Path

import pytest
import torch
import trl
from transformers import (
    AutoProcessor,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)

from tests.helpers.tiny import build_tokenizer

SPECIAL = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]


class QwenImagesProcessor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its part for videos."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([self.image_token, self.video_token])
        # Past the parent, which builds the part for videos.
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template, **kwargs)


# `AutoProcessor.from_pretrained` finds the class by the name that the folder holds.
AutoProcessor.register(Qwen2_5_VLConfig, QwenImagesProcessor, exist_ok=True)


def qwen_chat_template() -> str:
    """The template that Qwen ships with Qwen2.5-VL, which TRL keeps a copy of."""
    return (Path(trl.__file__).parent / "chat_templates" / "qwen2_5_vl.jinja").read_text(encoding="utf-8")


def save_tiny_qwen_vl(folder: str | Path, *, seed: int = 0) -> str:
    """Write a Qwen2.5-VL of two layers and two vision layers; an image has one token for 8 x 8 pixels, at most 16.

    Returns:
        The folder. `AutoProcessor` reads it in a process that has imported this module.
    """
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.model_max_length = 2048
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    processor = QwenImagesProcessor(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=8 * 8, max_pixels=32 * 32
        ),
        tokenizer=tokenizer,
        chat_template=qwen_chat_template(),
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            "max_position_embeddings": 2048,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 32,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(seed)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def qwen_path(tmp_path_factory) -> str:
    return save_tiny_qwen_vl(tmp_path_factory.mktemp("models") / "tiny-qwen-vl")

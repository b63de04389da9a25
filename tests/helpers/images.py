"""A tiny vision-language model and rows with images."""

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
)

from tests.helpers.tiny import build_tokenizer

KINDS = ["fail", "mixed", "solve", "mixed", "fail", "mixed"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def vlm_path(tmp_path_factory) -> str:
    return save_tiny_vlm(str(tmp_path_factory.mktemp("models") / "tiny-idefics3"))


def save_tiny_vlm(folder: str) -> str:
    """Writes a two-layer Idefics3 with two vision layers; 16 image tokens for an image of 32 x 32 pixels."""
    tokenizer = build_tokenizer()
    special = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"]
    special += [f"<row_{i}_col_{j}>" for i in range(1, 3) for j in range(1, 3)]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
        ),
        tokenizer=tokenizer,
        image_seq_len=16,
        chat_template=TEMPLATE,
    )
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        vision_config={**layers, "image_size": 32, "patch_size": 4},
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), "num_key_value_heads": 2, **layers, **ids},
    )
    torch.manual_seed(0)
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def image_rows() -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": "Which color?" + " Look." * (i % 3)}],
                "completion": [{"role": "assistant", "content": f"It is shade {i}."}],
                "image": Image.new("RGB", (32, 32), (i * 40, 255 - i * 40, 128)),
                "kind": kind,
            }
            for i, kind in enumerate(KINDS)
        ]
    )

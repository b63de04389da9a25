"""A real model small enough for every test: a two-layer Llama in float32 with its own trained tokenizer.

Nothing here is a stand-in: the folder holds config.json, safetensors, a byte-level BPE tokenizer and a ChatML
template, and is loaded through `AutoModelForCausalLM` and `AutoTokenizer` as any other model is.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Enough text for the merges that make digits, sums and the answer mark short.
CORPUS = [
    "What is 12 + 7? 12 + 7 = 19\n#### 19",
    "What is 3 + 45 + 6? 3 + 45 = 48, 48 + 6 = 54\n#### 54",
    "Question: how many apples are left? Answer: the total is \\boxed{8}.",
    "system You are a helpful assistant. user Add the numbers. assistant The sum is 21.",
    "0 1 2 3 4 5 6 7 8 9 10 20 30 40 50 60 70 80 90 100",
] * 4


def build_tokenizer(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer (any text encodes), eos `<|im_end|>`, pad `<|endoftext|>`, ChatML."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=512,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, hidden_size: int = 32, seed: int = 0, tied: bool = True
) -> LlamaForCausalLM:
    """Returns a randomly initialised Llama (2 layers, 4 heads, about 40 k parameters at width 32), float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # Tied as in SmolLM2; an initial spread wide enough that sampling does not collapse onto one token.
        tie_word_embeddings=tied,
        initializer_range=0.1,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).to(torch.float32)


def save_tiny_model(folder: str | Path, **settings: Any) -> str:
    """Writes model and tokenizer to `folder` as a pretrained model; returns the folder as a string."""
    tokenizer = build_tokenizer()
    build_model(tokenizer, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def cut(file: Path) -> None:
    """Leaves out a file's last bytes, as a copy that was broken off does."""
    file.write_bytes(file.read_bytes()[:-8])

"""`tiny-vlm`: an Idefics3 of 0.7M random parameters, with a processor that needs no torchvision.

It is there so that a recipe for vision-language models can be run, and learn something, on two CPU cores and with no
network. An image is 32 x 32 pixels to it, four tokens: it sees the colours of a page, and none of its letters.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Idefics3Config, Idefics3Processor, PreTrainedTokenizerFast

_FILES = Path(__file__).parent
_SEED = 0
_IMAGE_SIZE, _PATCH_SIZE, _SCALE = 32, 8, 2
_POSITIONS = 2048
_END, _PAD = "<|im_end|>", "<|endoftext|>"
# What an answer holds, for trainers that call tools. Thoughts stay in its content, where rewards read them.
_RESPONSE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}


class TinyVlm:
    """A kind of `hpt_trl.models.built_in.BuiltIn`: nothing is needed to write it."""

    name = "tiny-vlm"
    folder = "tiny-vlm-v1"
    megabytes = 10

    def check(self) -> None:
        """Nothing can be missing."""

    def config(self) -> "Idefics3Config":
        """The config: two vision layers, a connector that joins four patches, three layers of a Llama."""
        from transformers import Idefics3Config

        vocabulary = self._text_tokenizer().get_vocab()
        return Idefics3Config(
            architectures=["Idefics3ForConditionalGeneration"],
            image_token_id=vocabulary["<image>"],
            scale_factor=_SCALE,
            tie_word_embeddings=True,
            vision_config={
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": _IMAGE_SIZE,
                "patch_size": _PATCH_SIZE,
            },
            text_config={
                "model_type": "llama",
                "vocab_size": len(vocabulary),
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": _POSITIONS,
                "tie_word_embeddings": True,
                "pad_token_id": vocabulary[_PAD],
                "eos_token_id": vocabulary[_END],
                "bos_token_id": None,
            },
        )

    def tokenizer(self) -> "Idefics3Processor":
        """The processor: images of any size become four tokens between three that mark them."""
        from transformers import Idefics3ImageProcessorPil, Idefics3Processor

        edge = {"longest_edge": _IMAGE_SIZE}
        return Idefics3Processor(
            image_processor=Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False),
            tokenizer=self._text_tokenizer(),
            image_seq_len=(_IMAGE_SIZE // _PATCH_SIZE // _SCALE) ** 2,
            chat_template=(_FILES / "chat_template.jinja").read_text(encoding="utf-8"),
        )

    def write(self, folder: Path) -> None:
        """Write weights in float32, config and processor."""
        import torch
        from transformers import GenerationConfig, Idefics3ForConditionalGeneration

        config = self.config()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            model = Idefics3ForConditionalGeneration(config)
        processor = self.tokenizer()
        ids = processor.tokenizer.convert_tokens_to_ids([_END, _PAD])
        model.generation_config = GenerationConfig(eos_token_id=ids[0], pad_token_id=ids[1])
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    def _text_tokenizer(self) -> "PreTrainedTokenizerFast":
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_file=str(_FILES / "tokenizer.json"),
            eos_token=_END,
            pad_token=_PAD,
            additional_special_tokens=["<|im_start|>", "<fake_token_around_image>", "<image>", "<global-img>"],
            response_template=_RESPONSE,
            model_max_length=_POSITIONS,
            padding_side="left",
        )

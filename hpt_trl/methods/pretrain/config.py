"""The recipe keys of the stage `pretrain`."""

from dataclasses import dataclass, field

from trl import SFTConfig

from hpt_trl.recipes.arguments import RecipeArguments


@dataclass
class PretrainConfig(SFTConfig):
    """TRL's SFTConfig with packing on.

    The documents, each closed by the end-of-sequence token, are laid end to end and cut into blocks of `max_length`
    tokens (`wrapped`, as GPT-2 and its successors were trained): no token is lost, every block is full but the last of
    each thousand documents, which TRL packs at a time, and any attention kernel will do. `bfd` and `bfd_split` keep
    attention inside a document; they flatten a batch into one row, which is quick with FlashAttention only.
    """

    packing: bool = field(
        default=True, metadata={"help": "Whether documents are packed into blocks of `max_length` tokens."}
    )
    packing_strategy: str = field(
        default="wrapped",
        metadata={
            "help": "How documents are packed: `wrapped` fills every block, across documents; `bfd` cuts what is "
            "longer than a block, `bfd_split` moves it to another; both keep attention inside a document.",
            "choices": ["bfd", "bfd_split", "wrapped"],
        },
    )


@dataclass
class PretrainArguments(RecipeArguments):
    """What a model from random weights is made of: its config and its tokenizer, each new or taken from elsewhere."""

    model_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "Config of the new model: model_type and the fields of its Transformers config, e.g. {model_type: "
            "llama, hidden_size: 128, ...}. The vocabulary size and the special tokens come from the tokenizer. Beside "
            "`model_config_name_or_path`: the fields to change."
        },
    )
    model_config_name_or_path: str | None = field(
        default=None, metadata={"help": "Model folder or Hub id whose config, not weights, the new model takes."}
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Existing tokenizer to use, a folder or Hub id."}
    )
    tokenizer_vocab_size: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of an own byte-level BPE tokenizer, trained on the training split and saved with the model."
        },
    )
    tokenizer_special_tokens: list[str] | None = field(
        default=None,
        metadata={"help": "Further tokens of the own tokenizer that are never split, e.g. those of a chat template."},
    )
    tokenizer_training_rows: int = field(
        default=200_000,
        metadata={"help": "Documents that the own tokenizer is trained on at most, spread over the split."},
    )

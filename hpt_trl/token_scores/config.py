"""Settings of the frozen models that a method asks about tokens: a reference model, a value model."""

from dataclasses import dataclass, field
from typing import ClassVar

from trl import SFTConfig

from hpt_trl.settings.ranges import Rule, at_least, keep_to_rules, one_of

MODES = ("cached", "online")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class ReferenceConfig(SFTConfig):
    """`trl.SFTConfig` with the keys of a reference model; a method's config adds to it which tokens it is asked about.

    How rows are prepared and in which precision a model computes are SFTConfig's, and hold for the reference as well.

    Raises:
        ValueError: a value outside its range.
    """

    reference_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Reference model: a Hub id, a model folder, or the folder of a LoRA adapter over its base model. "
            "It must have the tokenizer of the trained model."
        },
    )
    reference_model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the reference model on the Hub."}
    )
    reference_dtype: str = field(
        default="auto",
        metadata={
            "help": "Type that the reference is loaded in; `auto` is the checkpoint's own.",
            "choices": list(DTYPES),
        },
    )
    reference_load_in_4bit: bool = field(
        default=False, metadata={"help": "Load the reference with 4-bit weights (NF4)."}
    )
    reference_mode: str = field(
        default="cached",
        metadata={
            "help": "`cached`: the reference's losses are kept on disk, 2 bytes a token, and no reference model is "
            "held while training; `online`: the reference runs beside the training.",
            "choices": list(MODES),
        },
    )
    reference_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the reference's losses; each reference and tokenization has a folder of its own there. "
            "By default `reference_scores` in the package's cache."
        },
    )
    reference_check_rows: int = field(
        default=2, metadata={"help": "Rows that are scored anew when a cache is opened, to see that it fits; 0: none."}
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        one_of("reference_mode", *MODES),
        one_of("reference_dtype", *DTYPES),
        at_least(0, "reference_check_rows"),
    )

    def __post_init__(self):
        super().__post_init__()
        keep_to_rules(self)

    @property
    def needs_reference(self) -> bool:
        """Whether the method compares tokens with the reference model, at any step."""
        return self.reference_model_name_or_path is not None


@dataclass
class ValueScoresConfig(SFTConfig):
    """`trl.SFTConfig` with the keys of a value model whose values a method reads.

    Raises:
        ValueError: a value outside its range.
    """

    value_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Value model: the folder of `stage: critic`, a whole model or an adapter; or a reward model, whose "
            "score then is the value of each position. It must have the tokenizer of the trained model."
        },
    )
    value_dtype: str = field(
        default="auto",
        metadata={
            "help": "Type that the value model is loaded in; `auto` is the checkpoint's own.",
            "choices": list(DTYPES),
        },
    )
    value_mode: str = field(
        default="cached",
        metadata={
            "help": "`cached`: the values are kept on disk, and no value model is held while training; `online`: the "
            "value model runs beside the training.",
            "choices": list(MODES),
        },
    )
    value_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the values; each value model and tokenization has a folder of its own there. By default "
            "`value_scores` in the package's cache."
        },
    )
    value_check_rows: int = field(
        default=2, metadata={"help": "Rows that are valued anew when a cache is opened, to see that it fits; 0: none."}
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        one_of("value_mode", *MODES),
        one_of("value_dtype", *DTYPES),
        at_least(0, "value_check_rows"),
    )

    def __post_init__(self):
        super().__post_init__()
        keep_to_rules(self)

    @property
    def needs_values(self) -> bool:
        """Whether the method reads the values, at any step."""
        return self.value_model_name_or_path is not None

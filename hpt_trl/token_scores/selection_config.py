"""Settings of a selection of tokens by a reference model."""

from dataclasses import dataclass, field
from typing import ClassVar

from hpt_trl.settings.ranges import Rule, at_least, keep_to_rules, one_of, share
from hpt_trl.token_scores.config import ReferenceConfig

SCOPES = ("sequence", "micro_batch", "global")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass
class SelectionConfig(ReferenceConfig):
    """`trl.SFTConfig` with the keys of a reference model, and how many tokens of which group are selected by it.

    Raises:
        ValueError: a value outside its range.
    """

    # What `selection_scope` may be; a method that has less says so.
    selection_scopes: ClassVar[tuple[str, ...]] = SCOPES

    select_ratio: float = field(
        default=0.6, metadata={"help": "Share of the tokens of a group that are trained on, above 0 and at most 1."}
    )
    selection_scope: str = field(
        default="sequence",
        metadata={
            "help": "The group that tokens are ranked in: `sequence`, a row (or a document of a packed row, where "
            "attention ends with it); `micro_batch`, what one process computes at once; `global`, all tokens of the "
            "optimizer step, over accumulation and processes (with accumulation this costs a forward pass more).",
            "choices": list(SCOPES),
        },
    )
    selection_warmup_steps: int = field(
        default=0, metadata={"help": "Optimizer steps on all tokens before the selection begins."}
    )
    select_ratio_schedule: str = field(
        default="constant",
        metadata={
            "help": "`constant`, or `linear` or `cosine` from 1 after the warm-up to `select_ratio` at the last step.",
            "choices": list(SCHEDULES),
        },
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        share("select_ratio", zero=False),
        one_of("select_ratio_schedule", *SCHEDULES),
        at_least(0, "selection_warmup_steps"),
    )

    def __post_init__(self):
        super().__post_init__()
        keep_to_rules(self)
        if self.selection_scope not in self.selection_scopes:
            raise ValueError(
                f"`selection_scope` is {self.selection_scope!r}; allowed: {', '.join(self.selection_scopes)}."
            )

    @property
    def selects_all(self) -> bool:
        """Whether the settings leave every token selected."""
        return self.select_ratio == 1 and self.select_ratio_schedule == "constant"

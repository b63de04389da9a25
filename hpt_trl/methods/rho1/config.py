"""Settings of Rho-1, checked when the config is made."""

from dataclasses import dataclass, field

from hpt_trl.token_scores.config import ReferenceConfig

SELECTIONS = ("excess", "reference_low", "random", "full")
# Selections that compare tokens with a reference model.
REFERENCED = ("excess", "reference_low")
SCOPES = ("sequence", "micro_batch", "global")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass
class Rho1Config(ReferenceConfig):
    """Configuration of `Rho1Trainer`: TRL's SFTConfig, and which tokens are trained on (arXiv 2404.07965)."""

    select_ratio: float = field(
        default=0.6, metadata={"help": "Share of the tokens of a group that are trained on, above 0 and at most 1."}
    )
    selection: str = field(
        default="excess",
        metadata={
            "help": "Which tokens: `excess`, those whose loss exceeds the reference's most (the paper's); controls at "
            "the same ratio: `reference_low`, those with the lowest loss under the reference; `random`, a seeded draw; "
            "`full`, all of them.",
            "choices": list(SELECTIONS),
        },
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

    def __post_init__(self):
        """Check the settings that belong together.

        Raises:
            ValueError: a value outside its range, or settings that exclude each other.
        """
        super().__post_init__()
        if not 0 < self.select_ratio <= 1:
            raise ValueError(f"`select_ratio` is {self.select_ratio}; allowed: above 0 and at most 1.")
        for name, allowed in (
            ("selection", SELECTIONS),
            ("selection_scope", SCOPES),
            ("select_ratio_schedule", SCHEDULES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; allowed: {', '.join(allowed)}.")
        if self.selection_warmup_steps < 0:
            raise ValueError(f"`selection_warmup_steps` is {self.selection_warmup_steps}; allowed: 0 or more.")
        if self.needs_reference and self.reference_model_name_or_path is None:
            raise ValueError(
                f"`reference_model_name_or_path` is missing: `selection: {self.selection}` compares tokens with a "
                "reference model. Name one (e.g. the output of `stage: ref_tuning`), or write `selection: random` or "
                "`full`."
            )
        if self.loss_type != "nll":
            raise ValueError(
                f"`loss_type` is {self.loss_type}; allowed: nll. The selected tokens are weighted, which another "
                "transform of their likelihood would undo."
            )
        if self.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor` is {self.label_smoothing_factor}; allowed: 0. Smoothing needs the logits of "
                "all tokens, which are never held here."
            )

    @property
    def needs_reference(self) -> bool:
        """Whether the selection compares tokens with a reference model, at any step."""
        all_tokens = self.select_ratio == 1 and self.select_ratio_schedule == "constant"
        return self.selection in REFERENCED and not all_tokens

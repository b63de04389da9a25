"""Settings of Rho-1, checked when the config is made."""

from dataclasses import dataclass, field

from hpt_trl.models.padding_free.settings import PaddingFree
from hpt_trl.token_scores.selection_config import SelectionConfig

SELECTIONS = ("excess", "reference_low", "random", "full")
# Selections that compare tokens with a reference model.
REFERENCED = ("excess", "reference_low")


@dataclass
class Rho1Config(PaddingFree, SelectionConfig):  # type: ignore[misc]
    """Configuration of `Rho1Trainer`: TRL's SFTConfig, and which tokens are trained on (arXiv 2404.07965).

    In Python the trainer pads as TRL's does, with which a ratio of 1 agrees bit for bit; recipes compute no padding.
    """

    is_as_trl = True

    selection: str = field(
        default="excess",
        metadata={
            "help": "Which tokens: `excess`, those whose loss exceeds the reference's most (the paper's); controls at "
            "the same ratio: `reference_low`, those with the lowest loss under the reference; `random`, a seeded draw; "
            "`full`, all of them.",
            "choices": list(SELECTIONS),
        },
    )

    def __post_init__(self):
        """Check the settings that belong together.

        Raises:
            ValueError: a value outside its range, or settings that exclude each other.
        """
        super().__post_init__()
        if self.selection not in SELECTIONS:
            raise ValueError(f"`selection` is {self.selection!r}; allowed: {', '.join(SELECTIONS)}.")
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
        return self.selection in REFERENCED and not self.selects_all

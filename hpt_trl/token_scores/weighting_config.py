"""Settings of the weights that tokens are trained with."""

from dataclasses import dataclass, field
from typing import ClassVar

from hpt_trl.settings.ranges import Rule, above, at_least, keep_to_rules, one_of, share
from hpt_trl.token_scores.advantages import TERMINALS
from hpt_trl.token_scores.config import ValueScoresConfig
from hpt_trl.token_scores.weights import matched_normal

# Weightings that read a value model's values.
VALUED = ("verifiable", "shuffled", "batch_permuted", "inverted", "position")
WEIGHTINGS = ("uniform", *VALUED, "random_matched")


@dataclass
class TokenWeightingConfig(ValueScoresConfig):
    """`trl.SFTConfig` with the keys of a weight for each token that is trained on.

    Raises:
        ValueError: a value outside its range, or settings that exclude each other.
    """

    # What `weighting` may be; a method that makes weights of something else adds to it.
    weightings: ClassVar[tuple[str, ...]] = WEIGHTINGS

    weighting: str = field(
        default="uniform",
        metadata={
            "help": "The weight of each token: `uniform`, 1; `verifiable`, by the advantage that a value model gives "
            "it. Controls of the same mean: `shuffled`, those of `verifiable` in another order within their sequence; "
            "`batch_permuted`, in another order within all sequences of a process's step; `random_matched`, drawn with "
            "a mean and a spread after the clip; `inverted`, by the negative advantage; `position`, the moving "
            "average of `verifiable` at a token's relative position.",
            "choices": list(WEIGHTINGS),
        },
    )
    td_gamma: float = field(default=1.0, metadata={"help": "Discount per token of the temporal differences."})
    td_lambda: float = field(default=0.95, metadata={"help": "lambda of generalized advantage estimation."})
    td_terminal: str = field(
        default="value",
        metadata={
            "help": "Difference of a sequence's last token: `value`, as of every other; `reward`, R - V_T with R = 1, "
            "which takes a value model of `objective: regression`.",
            "choices": list(TERMINALS),
        },
    )
    td_first_baseline: float | None = field(
        default=None,
        metadata={
            "help": "What a sequence's first token is compared with, e.g. 0.5; by default the value of the prompt's "
            "last token."
        },
    )
    weight_temperature: float = field(
        default=1.0, metadata={"help": "beta: the whitened advantage is divided by it before the exponential."}
    )
    weight_clip_low: float = field(default=0.1, metadata={"help": "Lower bound of a weight before its normalisation."})
    weight_clip_high: float = field(default=3.0, metadata={"help": "Upper bound of a weight before its normalisation."})
    weight_momentum: float = field(
        default=0.1, metadata={"help": "Share of a step's own advantages in the moving mean and spread."}
    )
    weight_warmup_steps: int = field(
        default=10, metadata={"help": "Steps over which that share falls from 1; the first step is not whitened."}
    )
    normalize_weights: bool = field(
        default=True,
        metadata={
            "help": "Divide the weights by their mean over the tokens of the step and all processes: without it their "
            "mean (about 1.3) is a higher learning rate."
        },
    )
    random_weight_mean: float = field(
        default=1.328, metadata={"help": "`random_matched`: mean after the clip, e.g. `weight_mean` of another run."}
    )
    random_weight_std: float = field(
        default=0.981, metadata={"help": "`random_matched`: spread after the clip, e.g. `weight_std` of another run."}
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        one_of("td_terminal", *TERMINALS),
        share("td_gamma", "td_lambda", "weight_momentum"),
        above(0, "weight_temperature"),
        at_least(0, "weight_warmup_steps"),
        share("weight_clip_low", zero=False, one=False),
        above(1, "weight_clip_high"),
    )

    def __post_init__(self):
        super().__post_init__()
        keep_to_rules(self)
        if self.weighting not in self.weightings:
            raise ValueError(f"`weighting` is {self.weighting!r}; allowed: {', '.join(self.weightings)}.")
        if self.needs_values and self.value_model_name_or_path is None:
            raise ValueError(
                f"`value_model_name_or_path` is missing: `weighting: {self.weighting}` is made of a value model's "
                "values. Name one (the output of `stage: critic`), or write `weighting: uniform`."
            )
        if self.weighting == "random_matched":
            try:
                matched_normal(
                    self.random_weight_mean,
                    self.random_weight_std,
                    low=self.weight_clip_low,
                    high=self.weight_clip_high,
                )
            except ValueError as error:
                raise ValueError(f"`random_weight_std` is {self.random_weight_std}: {error}") from error

    @property
    def needs_values(self) -> bool:
        """Whether the weights are made of a value model's values."""
        return self.weighting in VALUED

"""Settings of the critic, checked when the config is made, and which solutions it learns from."""

from dataclasses import dataclass, field
from typing import ClassVar

from hpt_trl.data.solution_pairs import PairArguments
from hpt_trl.methods.padding_free import PaddingFreeRewardConfig
from hpt_trl.recipes.arguments import RecipeArguments
from hpt_trl.settings.ranges import Rule, above, at_least, keep_to_rules, one_of, share

OBJECTIVES = ("pairwise", "regression")
REGRESSIONS = ("smooth_l1", "mse")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass
class ValueConfig(PaddingFreeRewardConfig):
    """`trl.RewardConfig` with the settings of a value model; `learning_rate` is the trunk's.

    Raises:
        ValueError: a value outside its range.
    """

    disable_dropout: bool = field(default=False, metadata={"help": "Switch off all dropout, the head's included."})
    objective: str = field(
        default="pairwise",
        metadata={
            "help": "`pairwise`: the correct solution of a pair is to have the higher mean value, "
            "-log sigmoid(V+ - V-); `regression`: each value is to be the lambda-return, from the outcome 1 or 0.",
            "choices": list(OBJECTIVES),
        },
    )
    head_learning_rate: float = field(default=1.0e-4, metadata={"help": "Learning rate of the value head."})
    value_head_dropout: float = field(default=0.2, metadata={"help": "Dropout inside of the value head, in training."})
    regression_loss: str = field(
        default="smooth_l1",
        metadata={"help": "Loss of a value: `smooth_l1` or `mse` (`regression` alone).", "choices": list(REGRESSIONS)},
    )
    smooth_l1_beta: float = field(
        default=0.5, metadata={"help": "Distance up to which `smooth_l1` is quadratic, as PyTorch's `beta`."}
    )
    return_gamma: float = field(default=1.0, metadata={"help": "Discount per token of the returns."})
    return_lambda: float = field(
        default=0.95, metadata={"help": "lambda of the returns in the end; 1 is the outcome itself, for every token."}
    )
    return_lambda_start: float = field(default=1.0, metadata={"help": "lambda of the returns at first."})
    return_lambda_schedule: str = field(
        default="linear",
        metadata={
            "help": "From the first to the last: `linear` or `cosine`; `constant`: `return_lambda` throughout.",
            "choices": list(SCHEDULES),
        },
    )
    return_lambda_hold_steps: int = field(default=250, metadata={"help": "Optimizer steps at the first lambda."})
    return_lambda_decay_steps: int = field(default=500, metadata={"help": "Optimizer steps from it to the last."})
    baseline_pairs: int = field(
        default=200,
        metadata={
            "help": "Training pairs that the baselines (length, likelihood, both) are fitted on, to stand beside the "
            "critic on the held-out pairs; 0: no baselines."
        },
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        one_of("objective", *OBJECTIVES),
        one_of("regression_loss", *REGRESSIONS),
        one_of("return_lambda_schedule", *SCHEDULES),
        share("return_gamma", "return_lambda", "return_lambda_start"),
        above(0, "head_learning_rate", "smooth_l1_beta"),
        at_least(0, "return_lambda_hold_steps", "return_lambda_decay_steps", "baseline_pairs"),
        share("value_head_dropout", one=False),
    )

    def __post_init__(self):
        super().__post_init__()
        keep_to_rules(self)
        if self.center_rewards_coefficient is not None and self.objective == "regression":
            raise ValueError(
                f"`center_rewards_coefficient` is {self.center_rewards_coefficient}, and `objective: regression` does "
                "not use it, whose values have a scale of their own; drop it, or write `objective: pairwise`."
            )

    @property
    def first_value(self) -> float:
        """What a new head says of everything: the middle of the outcomes, or nothing where only differences count."""
        return 0.5 if self.objective == "regression" else 0.0


@dataclass
class CriticArguments(PairArguments, RecipeArguments):
    """Which pairs of solutions the critic learns from; the prompt of a solution is Alpaca's text, not a chat."""

    conversational: bool | None = field(
        default=False, metadata={"help": "Put prompts and solutions into user and assistant messages."}
    )
    max_test_pairs_per_problem: int = field(
        default=1, metadata={"help": "Held-out pairs of one problem at most; with 1 they are independent."}
    )

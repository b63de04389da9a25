"""Settings of the critic, checked when the config is made, and which solutions it learns from."""

from dataclasses import dataclass, field

from trl import RewardConfig

from hpt_trl.data.solution_pairs import PairArguments
from hpt_trl.recipes.arguments import RecipeArguments

OBJECTIVES = ("pairwise", "regression")
REGRESSIONS = ("smooth_l1", "mse")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass
class ValueConfig(RewardConfig):
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

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in (
            ("objective", OBJECTIVES),
            ("regression_loss", REGRESSIONS),
            ("return_lambda_schedule", SCHEDULES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; allowed: {', '.join(allowed)}.")
        for name in ("return_gamma", "return_lambda", "return_lambda_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; allowed: 0 to 1.")
        for name in ("head_learning_rate", "smooth_l1_beta"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; allowed: above 0.")
        for name in ("return_lambda_hold_steps", "return_lambda_decay_steps", "baseline_pairs"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; allowed: 0 or more.")
        if not 0 <= self.value_head_dropout < 1:
            raise ValueError(f"`value_head_dropout` is {self.value_head_dropout}; allowed: 0 to below 1.")

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

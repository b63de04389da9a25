"""The recipe keys of the stage `ref_tuning`."""

from dataclasses import dataclass, field

from hpt_trl.data.solutions import SolutionArguments
from hpt_trl.methods.padding_free import PaddingFreeSFTConfig
from hpt_trl.recipes.arguments import RecipeArguments


@dataclass
class RefTuningConfig(PaddingFreeSFTConfig):
    """TRL's SFTConfig, and the models that are kept along the run."""

    checkpoint_fraction: float | None = field(
        default=0.2,
        metadata={
            "help": "Keep a model after every such share of the run, and the one with the lowest held-out loss, in "
            "`checkpoints`; null: the last one alone."
        },
    )


@dataclass
class RefTuningArguments(SolutionArguments, RecipeArguments):
    """Which solutions are drawn; their prompt is Alpaca's text, not a chat."""

    conversational: bool | None = field(
        default=False,
        metadata={"help": "Put the Alpaca prompt and the solution into user and assistant messages."},
    )

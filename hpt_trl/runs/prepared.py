"""What a recipe resolves to without weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from hpt_trl.data.layouts import Splits
from hpt_trl.data.overlap import Overlap
from hpt_trl.data.rendering import Encoder
from hpt_trl.environments.acting import Acting
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.rewards.reward_model import RewardModel


@dataclass
class Prepared:
    """A recipe with all that could be resolved without weights.

    Attributes:
        model: The recipe's name of the model; None where the stage makes a new one.
        splits: Training and held-out rows as the trainer takes them.
        answered: The held-out rows that the evaluation has answered, None without one.
        overlap: How many held-out rows are trained on as well, None without held-out rows.
        left_out: Training rows that each epoch leaves out, as they fill no batch.
        rewards: Guarded functions in the recipe's order, then its reward models.
        reward_models: The latter by themselves.
        reward_weights: One each.
        judges: How many of them, from the first on, make up the evaluation's `reward`: the functions where there are
            some (they are the true reward, a reward model only learnt it), else all. The others are reported beside it.
        success: Place of the one that decides what is solved.
        encoder: As the trainer encodes rows.
        checkpoint: Where the run goes on, None for a new one.
        eval_max_new_tokens: Length limit of the evaluation, in tokens.
        end_ids: Token ids at which the model stops; None for all special ones.
        evaluations: Name -> the evaluation of that name, before and after the training.
        unused: Columns of the data that nothing reads.
        acting: How rollouts are begun in the recipe's environment; None without one.
    """

    recipe: Recipe
    model: str | None
    model_config: PretrainedConfig
    splits: Splits
    answered: Dataset | None
    overlap: Overlap | None
    left_out: int
    rewards: list[Callable[..., Any]]
    reward_models: list[RewardModel]
    reward_weights: list[float]
    judges: int
    success: int
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin
    encoder: Encoder
    checkpoint: Path | None
    eval_max_new_tokens: int
    end_ids: list[int] | None
    evaluations: "dict[str, Prepared]"
    unused: list[str]
    acting: Acting | None

    @property
    def judge_weights(self) -> list[float]:
        """The weights in a training's own evaluation: a true reward that is only measured has weight 0 in the training.

        What `stage: evaluate` measures is weighed as its recipe says.
        """
        weights = self.reward_weights[: self.judges]
        others = [0.0] * (len(self.rewards) - self.judges)
        return (weights if any(weights) else [1.0] * len(weights)) + others

    @property
    def success_threshold(self) -> float:
        """The value of the success reward from which the evaluation counts a completion as solved."""
        own = self.recipe.arguments.eval_success_threshold
        return self.recipe.stage.success_threshold(self.recipe.config) if own is None else own

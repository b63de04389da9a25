"""The stage `grpo`: recipes that train with TRL's GRPOTrainer, its faults mended (see `hpt_trl.rollouts.trainer`)."""

from transformers import Trainer
from trl import GRPOConfig

from hpt_trl.models.moving_reference import refuse_lost_reference
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.rollouts.ranges import ROLLOUT_RULES
from hpt_trl.rollouts.sampling import check_sampling
from hpt_trl.rollouts.trainer import RolloutTrainer


def check(recipe: Recipe) -> None:
    """Refuse settings that the trainer would refuse, before anything is loaded."""
    try:
        check_sampling(recipe.config)
        refuse_lost_reference(recipe.config, spread=recipe.profile.spreads_weights)
    except ValueError as error:
        raise recipe.place(error) from None


def build(inputs: StageInputs) -> Trainer:
    return RolloutTrainer(**inputs.rollout_arguments())


STAGE = Stage(
    name="grpo",
    config_class=GRPOConfig,
    build=build,
    check=check,
    rules=ROLLOUT_RULES,
    rewards="required",
    completion_length=lambda config: config.max_completion_length,
)

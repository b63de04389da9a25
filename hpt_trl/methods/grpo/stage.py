"""The stage `grpo`: recipes that train with TRL's GRPOTrainer, its faults mended (see `hpt_trl.rollouts.trainer`).

With `environment` its rollouts have several turns (`hpt_trl.rollouts.acting`).
"""

from transformers import Trainer

from hpt_trl.environments.arguments import ENVIRONMENT_RULES
from hpt_trl.methods.environments import ActingArguments, check_environment
from hpt_trl.models.moving_reference import refuse_lost_reference
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.rollouts.acting import ActingTrainer
from hpt_trl.rollouts.config import RolloutConfig
from hpt_trl.rollouts.ranges import ROLLOUT_RULES
from hpt_trl.rollouts.sampling import check_sampling


def check(recipe: Recipe) -> None:
    """Refuse settings that the trainer would refuse, before anything is loaded."""
    check_environment(recipe)
    try:
        check_sampling(recipe.config)
        refuse_lost_reference(recipe.config, spread=recipe.profile.spreads_weights)
    except ValueError as error:
        raise recipe.place(error) from None


def build(inputs: StageInputs) -> Trainer:
    return ActingTrainer(**inputs.rollout_arguments())


STAGE = Stage(
    name="grpo",
    config_class=RolloutConfig,
    argument_class=ActingArguments,
    environment=lambda arguments: arguments.environment,
    build=build,
    reference=lambda trainer: trainer.ref_model,
    check=check,
    rules=(*ROLLOUT_RULES, *ENVIRONMENT_RULES),
    rewards="required",
    completion_length=lambda config: config.max_completion_length,
)

"""The stage `grpo`: recipes that train with TRL's GRPOTrainer, its faults mended (see `hpt_trl.rollouts.trainer`)."""

from transformers import Trainer
from trl import GRPOConfig

from hpt_trl.recipes.stages import Stage, StageInputs
from hpt_trl.rollouts.ranges import ROLLOUT_RULES
from hpt_trl.rollouts.trainer import RolloutTrainer


def build(inputs: StageInputs) -> Trainer:
    return RolloutTrainer(**inputs.rollout_arguments())


STAGE = Stage(
    name="grpo",
    config_class=GRPOConfig,
    build=build,
    rules=ROLLOUT_RULES,
    rewards="required",
    completion_length=lambda config: config.max_completion_length,
)

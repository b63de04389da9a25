"""Settings that trainers on rollouts add to TRL's."""

from dataclasses import dataclass

from trl import GRPOConfig

from hpt_trl.models.padding_free.settings import PaddingFree


@dataclass
class RolloutConfig(PaddingFree, GRPOConfig):
    """`trl.GRPOConfig` with the settings of `hpt_trl.rollouts.trainer.RolloutTrainer`."""

"""Settings that trainers on rollouts add to TRL's."""

from dataclasses import dataclass, field

from trl import GRPOConfig


@dataclass
class RolloutConfig(GRPOConfig):
    """`trl.GRPOConfig` with the settings of `hpt_trl.rollouts.trainer.RolloutTrainer`."""

    padding_free: bool | None = field(
        default=None,
        metadata={
            "help": "Compute rows without padding, and a beginning that rows of a micro-batch share once: equal to the "
            "padded way up to rounding. By default where the model can; false: TRL's own arithmetic."
        },
    )

    @property
    def pads_no_more(self) -> bool:
        """Whether rows are to be computed without padding."""
        return self.padding_free is not False

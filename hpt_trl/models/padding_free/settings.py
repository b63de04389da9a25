"""The key by which trainers on rows are told to compute padding."""

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass
class PaddingFree:
    """What a trainer's config adds: rows are computed without padding by default.

    Attributes:
        is_as_trl: leave all arithmetic to TRL, whatever the key says: what a trainer does that claims to be TRL's in
            its limits, until a recipe says otherwise.
    """

    is_as_trl: ClassVar[bool] = False

    padding_free: bool | None = field(
        default=None,
        metadata={
            "help": "Compute rows without padding, and a beginning that rows of a batch share once: equal to the "
            "padded way up to rounding. By default where the model can; false: TRL's own arithmetic. `sft` and "
            "its like: true lays rows end to end as TRL does, for FlashAttention."
        },
    )

    @property
    def pads_no_more(self) -> bool:
        """Whether rows are to be computed without padding."""
        return self.padding_free is not False and not self.is_as_trl


def pads_no_more(config: object) -> bool:
    """Whether a trainer's rows are to be computed without padding; TRL's own config asks for TRL's arithmetic."""
    return isinstance(config, PaddingFree) and config.pads_no_more

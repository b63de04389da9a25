"""The key by which trainers on rows are told to compute padding."""

import logging
from dataclasses import dataclass, field
from typing import ClassVar

logger = logging.getLogger(__name__)

# Settings under which padding is computed, whatever else is said.
_NEEDS_PADDING = {
    "torch_compile": "rows without it have another shape each time",
    "neftune_noise_alpha": "the noise goes by the width of a batch",
}


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
    def asks_for_no_padding(self) -> bool:
        """Whether rows are to be computed without padding, as far as `padding_free` and its like say."""
        return self.padding_free is not False and not self.is_as_trl

    @property
    def needs_padding(self) -> str | None:
        """Which other setting has padding computed, and why; None where none does."""
        for key, reason in _NEEDS_PADDING.items():
            if getattr(self, key):
                return f"`{key}` is set: padding is computed, since {reason}"
        return None


def pads_no_more(config: object) -> bool:
    """Whether a trainer's rows are to be computed without padding; TRL's own config asks for TRL's arithmetic."""
    return isinstance(config, PaddingFree) and config.asks_for_no_padding and config.needs_padding is None


def log_padding(config: object) -> None:
    """Say which setting has a trainer compute padding that it is not asked to compute."""
    if isinstance(config, PaddingFree) and config.asks_for_no_padding and config.needs_padding:
        logger.info("%s.", config.needs_padding)

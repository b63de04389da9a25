"""Which rollouts need not be computed, and where demonstrations stand beside those that stay where they are."""

from dataclasses import dataclass

from hpt_trl.methods.hybrid.config import HybridPostConfig
from hpt_trl.rollouts.dealing import padded_area
from hpt_trl.rollouts.rows import Row


@dataclass(frozen=True)
class Dropping:
    """The rollouts that are left out of the forward and backward pass.

    Attributes:
        masked: those without a token that has a loss (`mask_truncated_completions`).
        gated: those of prompts whose rollouts have no part in the loss.
        flat: those without a score, or of a group without contrast: their advantage is 0. Where these go, no term
            depends on which rows share a micro-batch, and all rows are dealt anew.
        reason: why the others stay; empty where none do.
    """

    masked: bool
    gated: bool
    flat: bool
    reason: str = ""

    def leaves_out(self, row: Row) -> bool:
        """Whether a rollout is one of them."""
        return (self.masked and row.masked) or (self.gated and row.gated) or (self.flat and row.dead)


NOTHING = Dropping(masked=False, gated=False, flat=False, reason="`skip_dead_rows: false`")


def exact_dropping(config: HybridPostConfig, aux_loss: bool) -> Dropping:
    """Returns what can be left out under these settings without a change of the gradient.

    Args:
        aux_loss: the model has a load-balancing loss.
    """

    def only_masked(reason: str) -> Dropping:
        return Dropping(masked=True, gated=False, flat=False, reason=reason)

    def none_of_trained_groups(reason: str) -> Dropping:
        return Dropping(masked=True, gated=True, flat=False, reason=reason)

    if aux_loss:
        reason = "the load-balancing loss acts on every rollout"
        return Dropping(masked=False, gated=False, flat=False, reason=reason)
    if config.beta != 0:
        return only_masked("`beta` is not 0: the KL term acts on every rollout")
    if config.use_adaptive_entropy:
        return only_masked("`use_adaptive_entropy` goes by the entropy of every rollout")
    if config.top_entropy_quantile < 1:
        return only_masked("`top_entropy_quantile` is taken over every rollout")
    if config.loss_type == "bnpo":
        return only_masked("`loss_type: bnpo` divides by the tokens of each micro-batch")
    if config.entropy_coef != 0:
        return none_of_trained_groups("the entropy bonus acts on rollouts of equal rewards as well")
    if config.multi_objective_aggregation != "sum_then_normalize":
        return none_of_trained_groups(
            "`multi_objective_aggregation: normalize_then_sum` moves equal rewards away from zero"
        )
    return Dropping(masked=True, gated=True, flat=True)


def add_demonstrations(micros: list[list[Row]], demonstrations: list[Row]) -> None:
    """Append demonstrations to the micro-batches of an optimizer step, each where it makes the smallest batch.

    The longest are placed first: no batch of wide rows is made higher than it must be.
    """
    for row in sorted(demonstrations, key=lambda row: (-len(row), row.prompt)):
        areas = [padded_area([length for one in (*micro, row) for length in one.lengths]) for micro in micros]
        micros[areas.index(min(areas))].append(row)

"""The rows of a generation batch: routed by a plan, and dealt to the micro-batches that train them."""

from typing import Any

from accelerate import Accelerator

from hpt_trl.methods.hybrid.acted import ActedDemonstrations
from hpt_trl.methods.hybrid.demonstrations import Demonstrations
from hpt_trl.methods.hybrid.dropping import Dropping, add_demonstrations
from hpt_trl.methods.hybrid.routing import Plan, demonstration_row, routed_advantages, without_gated
from hpt_trl.rollouts.dealing import deal_to_steps
from hpt_trl.rollouts.rows import Row, loss_mask, unpad


def routed_rows(
    buffers: list[dict[str, Any]],
    plan: Plan,
    demonstrations: Demonstrations | ActedDemonstrations,
    *,
    group: int,
    first_row: int,
    per_window: int,
    masks_gated: bool,
) -> tuple[list[list[Row]], list[Row]]:
    """The rollouts of each micro-batch under a plan, and the demonstrations that it calls for.

    Args:
        buffers: The micro-batches as the base would train them; they get the plan's advantages and masks.
        demonstrations: By the number of a row of this process.
        group: Rollouts of a prompt.
        first_row: Number of this process's first row in the generation batch of all.
        per_window: Micro-batches of an optimizer step.
        masks_gated: Rollouts without a part in the loss have no token with one.
    """
    rollouts: list[list[Row]] = []
    called_for: list[Row] = []
    for number, buffer in enumerate(buffers):
        index = buffer["row"].cpu() + first_row
        buffer["advantages"] = routed_advantages(buffer["advantages"], index, plan, group)
        if masks_gated:
            buffer["completion_mask"] = without_gated(buffer["completion_mask"], index, plan, group)
        rollouts.append(unpad(buffer))
        has_loss = loss_mask(buffer).any(1).tolist()
        for row, i, trained in zip(rollouts[-1], index.tolist(), has_loss, strict=True):
            row.gated, row.masked = bool(plan.gated[i // group]), not trained
            row.window, row.micro, row.prompt = number // per_window, number % per_window, i // group
            row.solved, row.dead = bool(plan.solved.view(-1)[i]), bool(plan.dead.view(-1)[i])
            row.signed = float(plan.signed.view(-1)[i])
            # The process that holds a group's first rollout brings the demonstration, once.
            if i % group == 0 and plan.needs_demonstration[row.prompt]:
                called_for.append(demonstration_row(demonstrations[i - first_row], row, plan))
    return rollouts, called_for


def dealt(
    rollouts: list[list[Row]],
    demonstrations: list[Row],
    dropping: Dropping,
    per_window: int,
    accelerator: Accelerator | None,
    *,
    by_prompt: bool,
) -> list[list[Row]]:
    """The rows that are computed, by micro-batch; each stays in the optimizer step in which the base would train it.

    Args:
        rollouts: By micro-batch, as the base would train them.
        accelerator: Its processes share their rows; None: each keeps its own.
        by_prompt: Rows of the same prompt stay together, and not those of like length.
    """
    left = [[row for row in micro if not dropping.leaves_out(row)] for micro in rollouts]
    if dropping.flat:
        kept = [row for micro in left for row in micro]
        return deal_to_steps(kept + demonstrations, len(rollouts), per_window, accelerator, by_prompt=by_prompt)
    for window in range(len(left) // per_window):
        of_window = [row for row in demonstrations if row.window == window]
        add_demonstrations(left[window * per_window : (window + 1) * per_window], of_window)
    return left

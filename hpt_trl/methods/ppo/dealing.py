"""The rollouts of a generation batch, dealt to micro-batches of rows of like length."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator

from hpt_trl.rollouts.rows import Row, deal_evenly
from hpt_trl.rollouts.step_metrics import PLACES, Places, counts_of, totals_of


def dealt(
    buffers: list[dict[str, Any]],
    rows_of: Callable[[dict[str, Any]], list[Row]],
    collate: Callable[[list[Row]], dict[str, Any]],
    per_step: int,
    accelerator: Accelerator,
) -> list[dict[str, Any]]:
    """The micro-batches with rows of like length together and no wider than needed.

    Rows stay in their optimizer step, whose loss is a sum over its micro-batches: the dealing changes nothing else.

    Args:
        buffers: The micro-batches as the base would train them.
        rows_of: The rows of one of them.
        collate: A batch of some rows.
        per_step: Micro-batches of an optimizer step.

    Returns:
        As many batches, each with `Places` under `PLACES`.
    """
    of_all = len(buffers[0]["completion_ids"]) * accelerator.num_processes
    totals = totals_of(accelerator.reduce(counts_of(buffers), reduction="sum"), per_step, of_all)
    batches = []
    for first in range(0, len(buffers), per_step):
        window = buffers[first : first + per_step]
        rows = [rows_of(buffer) for buffer in window]
        for micro, of_micro in enumerate(rows):
            for row in of_micro:
                row.micro = micro
        slots = deal_evenly([row for of_micro in rows for row in of_micro], per_step)
        for number, (slot, buffer) in enumerate(zip(slots, window, strict=True), start=1):
            micros = torch.tensor([row.micro for row in slot], device=accelerator.device)
            places = Places(micros, totals[first // per_step], ends_step=number == per_step)
            of_step = {"num_items_in_batch": buffer["num_items_in_batch"], PLACES: places}
            batches.append(collate(slot) | of_step)
    return batches

"""Rows dealt to the micro-batches that train them: of like length together, or of the same prompt."""

from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from trl import GRPOConfig

from hpt_trl.rollouts.rows import Row
from hpt_trl.rollouts.step_metrics import PLACES, Places, counts_of, totals_of


def goes_by_micro_batch(args: GRPOConfig) -> bool:
    """Whether a loss has means over the tokens of a micro-batch, which depend on the rows in it."""
    by_entropy = args.entropy_coef != 0 or args.use_adaptive_entropy or args.top_entropy_quantile < 1
    return bool(by_entropy or args.loss_type == "bnpo")


def deal(lengths: list[int], slots: int, beginnings: Sequence[Hashable] | None = None) -> list[list[int]]:
    """Indices of rows dealt to `slots` micro-batches: equal counts, rows of like length together.

    Rows are sorted by length and cut into consecutive chunks; of unequal chunks the shorter rows have the larger ones,
    so that no batch is both the widest and the highest. The dealing depends on nothing but what is given.

    Args:
        beginnings: what each row begins with; where it is given, those that begin alike stay together, sorted by the
            longest of them.
    """
    if beginnings is None:
        order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    else:
        longest: dict[Hashable, int] = {}
        for beginning, length in zip(beginnings, lengths, strict=True):
            longest[beginning] = max(length, longest.get(beginning, 0))
        number = {beginning: place for place, beginning in enumerate(longest)}
        order = sorted(range(len(lengths)), key=lambda i: (-longest[beginnings[i]], number[beginnings[i]], -lengths[i]))
    size, extra = divmod(len(order), slots)
    bounds = list(accumulate((size + (slot >= slots - extra) for slot in range(slots)), initial=0))
    return [order[start:stop] for start, stop in pairwise(bounds)]


def deal_rows(rows: list[Row], slots: int, *, by_prompt: bool) -> list[list[Row]]:
    """Rows dealt to `slots` micro-batches, those of like length or of the same prompt together (see `deal`)."""
    prompts = prompts_of(rows) if by_prompt else None
    return [[rows[i] for i in slot] for slot in deal([len(row) for row in rows], slots, prompts)]


def prompts_of(rows: list[Row]) -> list[tuple[int, ...]]:
    """The tokens of each row's prompt."""
    return [tuple(row.prompt_ids.tolist()) for row in rows]


def deal_evenly(rows: list[Row], slots: int, *, by_prompt: bool = False) -> list[list[Row]]:
    """The same with as many rows in each micro-batch: masked ones fill the gaps.

    The base's entropy bonus is a mean of each micro-batch: one of masked ones alone would weaken it.
    """
    own, masked = [row for row in rows if not row.masked], [row for row in rows if row.masked]
    dealt = deal_rows(own, slots, by_prompt=by_prompt)
    for slot in dealt:
        slot += [masked.pop() for _ in range(len(rows) // slots - len(slot))]
    return dealt


def deal_to_steps(
    rows: list[Row],
    micro_batches: int,
    per_step: int,
    accelerator: Accelerator | None = None,
    *,
    by_prompt: bool = False,
) -> list[list[Row]]:
    """Rows dealt to the micro-batches of their optimizer step (`Row.window`), those of one process in turn.

    Args:
        micro_batches: of all steps together.
        per_step: micro-batches of an optimizer step on each process.
        accelerator: its processes share their rows, so that none waits for another; None: each keeps its own.
    """
    world, rank = 1, 0
    if accelerator is not None and accelerator.num_processes > 1:
        world, rank = accelerator.num_processes, accelerator.process_index
        rows = [row.to(accelerator.device) for row in gather_object([row.to("cpu") for row in rows])]
    micros: list[list[Row]] = []
    for window in range(micro_batches // per_step):
        own = [row for row in rows if row.window == window]
        micros += deal_rows(own, per_step * world, by_prompt=by_prompt)[rank::world]
    return micros


def padded_area(lengths: list[int]) -> int:
    """Positions that a batch of rows occupies once padded."""
    return len(lengths) * max(lengths, default=0)


def dealt_anew(
    buffers: list[dict[str, Any]],
    rows_of: Callable[[dict[str, Any]], list[Row]],
    collate: Callable[[list[Row]], dict[str, Any]],
    per_step: int,
    accelerator: Accelerator,
    *,
    by_prompt: bool,
) -> list[dict[str, Any]]:
    """The micro-batches with rows of like length, or of the same prompt, together, and no wider than needed.

    Rows stay in their optimizer step, whose loss is a sum over its micro-batches: the dealing changes nothing else.

    Args:
        buffers: The micro-batches as the base would train them.
        rows_of: The rows of one of them.
        collate: A batch of some rows.
        per_step: Micro-batches of an optimizer step.
        by_prompt: Rows of the same prompt stay together, and not those of like length.

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
        slots = deal_evenly([row for of_micro in rows for row in of_micro], per_step, by_prompt=by_prompt)
        for number, (slot, buffer) in enumerate(zip(slots, window, strict=True), start=1):
            micros = torch.tensor([row.micro for row in slot], device=accelerator.device)
            places = Places(micros, totals[first // per_step], ends_step=number == per_step)
            of_step = {"num_items_in_batch": buffer["num_items_in_batch"], PLACES: places}
            batches.append(collate(slot) | of_step)
    return batches

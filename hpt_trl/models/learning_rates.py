"""A learning rate of its own for a part of a model."""

from collections.abc import Iterable
from typing import Any

import torch

from hpt_trl.errors import UserError


def give_learning_rate(
    optimizer: torch.optim.Optimizer, parameters: Iterable[torch.nn.Parameter], learning_rate: float
) -> None:
    """Put some of an optimizer's parameters into groups with another learning rate; schedules scale each from its own.

    Args:
        optimizer: before its first step, and before a schedule is made for it.
    """
    own = {id(parameter) for parameter in parameters}
    groups = []
    for group in optimizer.param_groups:
        for mine in (False, True):
            chosen = [parameter for parameter in group["params"] if (id(parameter) in own) == mine]
            if chosen:
                groups.append({**group, "params": chosen, **({"lr": learning_rate} if mine else {})})
    optimizer.param_groups[:] = groups


def refuse_ready_optimizer(trainer: Any, key: str, passed: torch.optim.Optimizer | None = None) -> None:
    """Refuse an optimizer in which `give_learning_rate` has no say: DeepSpeed's own, or one that was passed.

    Args:
        trainer: just made.
        key: of the learning rate.
        passed: an optimizer that the key and its user cannot both mean.

    Raises:
        UserError: there is one.
    """
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is not None and "optimizer" in plugin.deepspeed_config:
        where = "DeepSpeed's config has an `optimizer`"
    elif passed is not None:
        where = "an optimizer was passed"
    else:
        return
    raise UserError(f"{key}: {where}, which this learning rate does not reach; drop the one or the other.")

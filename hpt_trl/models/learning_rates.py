"""A learning rate of its own for a part of a model."""

from collections.abc import Iterable

import torch


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

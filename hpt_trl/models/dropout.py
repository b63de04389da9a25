"""Dropout: where a config has it, whether it is on, and how it is left out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_NAMES = re.compile("dropout|pdrop$")


def dropouts_of(fields: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """What a config says of dropout: names, and shares from 0 to 1, of its parts as well."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from dropouts_of(value)
        elif _NAMES.search(str(name)) and isinstance(value, int | float):
            yield str(name), value


def check_dropouts(fields: dict[str, Any]) -> None:
    """Check what a config says of dropout, which the layers do not look at before the first step.

    Args:
        fields: of the config.

    Raises:
        ValueError: a share that is none.
    """
    for name, value in dropouts_of(fields):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` is {value:g}; allowed: 0 to 1.")


def is_noisy(model: Any) -> bool:
    """Whether a model draws at random what it leaves out: rows that begin alike then differ from their first token on.

    Args:
        model: with an adapter's layers in it or not.
    """
    return model.training and any(_share_of(module) for module in model.modules())


def _share_of(module: Any) -> float:
    """The share that a module leaves out: as a layer of dropout, or by a number that it hands to a function."""
    from torch.nn import Dropout

    if isinstance(module, Dropout):
        return module.p
    own = (value for name, value in vars(module).items() if "drop" in name and isinstance(value, int | float))
    return max(own, default=0.0)


def leave_dropout_out(model: "nn.Module") -> None:
    """Let the dropout layers of a model pass everything on."""
    from torch.nn import Dropout

    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = 0.0


@contextmanager
def without_dropout(model: "nn.Module") -> Iterator[None]:
    """While open, nothing of a model is drawn by chance; what is not stays in the mode that it is in."""
    noisy = [module for module in model.modules() if _share_of(module)]
    before = [module.training for module in noisy]
    for module in noisy:
        module.training = False
    try:
        yield
    finally:
        for module, training in zip(noisy, before, strict=True):
            module.training = training

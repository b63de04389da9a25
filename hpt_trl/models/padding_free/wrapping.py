"""A module's forward pass within another."""

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any

from torch import nn

_REPLACED = "replaced_forward"


def wrap_forward(module: nn.Module, around: Callable[..., Any]) -> None:
    """Have a function answer for a module: it gets the module, the forward pass that was there, and its arguments.

    It can be done again. That forward pass is an attribute of the module and not in a closure: a copy of the module
    computes with its own weights.
    """
    name = f"{_REPLACED}_{sum(key.startswith(_REPLACED) for key in vars(module))}"
    setattr(module, name, module.forward)

    @wraps(type(module).forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(self, getattr(self, name), *args, **kwargs)

    module.forward = MethodType(forward, module)

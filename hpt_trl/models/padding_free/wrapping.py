"""A module's forward pass within another."""

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any

from torch import nn


def wrap_forward(module: nn.Module, around: Callable[..., Any]) -> None:
    """Have a function answer for a module: it gets the module, the forward pass that was there, and its arguments.

    That forward pass becomes the module's `padded_forward`; where it has one already, of another wrapping, a longer
    name. It is an attribute and not in a closure: a copy of the module computes with its own weights.
    """
    name = "padded_forward"
    while name in vars(module):
        name += "_"
    setattr(module, name, module.forward)

    @wraps(type(module).forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(self, getattr(self, name), *args, **kwargs)

    module.forward = MethodType(forward, module)

"""Trainers that take what their TRL base takes, by position as by name."""

import functools
import inspect
from collections.abc import Callable
from typing import Any


def takes_arguments_of(
    base: type, config: type, *own: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate an `__init__` that names some arguments of its base's and passes the others on as `**kwargs`.

    It then has the signature of the base's own, whose positions may change with TRL's releases.

    Args:
        config: the class that `args` must have.
        own: arguments that the base does not have, taken by name alone and None by default.
    """
    of_base = inspect.signature(base.__init__)  # type: ignore[misc]
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in own]
    signature = of_base.replace(parameters=[*of_base.parameters.values(), *named])

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(init)
        def by_name(self: Any, *args: Any, **kwargs: Any) -> None:
            given = dict(signature.bind(self, *args, **kwargs).arguments)
            del given["self"]
            if not isinstance(given.get("args"), config | None):
                raise TypeError(
                    f"`args` is a {type(given['args']).__name__}; {type(self).__name__} takes a {config.__name__}."
                )
            init(self, **given)

        by_name.__signature__ = signature  # type: ignore[attr-defined]
        return by_name

    return decorate

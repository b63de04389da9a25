"""Calls of an environment, whose mistakes are told with the environment and the row."""

import inspect
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from hpt_trl.data.sources import ROW
from hpt_trl.environments.protocol import Environment, Observation, Picture
from hpt_trl.errors import UserError


def ask(environment: Environment, method: str, row: dict[str, Any], *arguments: Any) -> Any:
    """Calls a method of an environment.

    Args:
        row: that the rollout is of, for the message.

    Raises:
        UserError: it raised something, or returned what it may not.
    """
    try:
        answer = getattr(environment, method)(*arguments)
    except UserError as error:
        raise named(error, row) from error
    # What another's environment raises is another's choice.
    except Exception as error:
        told = f"`{method}` of the environment {type(environment).__name__} {raised(error)}"
        raise named(UserError(told), row) from error
    if method in _ALLOWED and not _ALLOWED[method][0](answer):
        text = repr(answer)
        told = f"`{method}` of {type(environment).__name__} returned {text[:120]}{'…' if text[120:] else ''}"
        raise named(UserError(f"{told}; allowed: {_ALLOWED[method][1]}."), row)
    return answer


def columns(found: Sequence[dict[str, Any]], method: str) -> dict[str, list[Any]]:
    """What a method of an environment told of each rollout, by name.

    Raises:
        UserError: not the same names of all.
    """
    for one in found:
        if odd := sorted(one.keys() ^ found[0].keys()):
            raise UserError(f"`{method}` of the environment tells `{odd[0]}` of some rollouts alone; tell it of all.")
    return {name: [one[name] for one in found] for name in found[0]}


def raised(error: Exception) -> str:
    """What was raised, and in which line."""
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"raised {type(error).__name__}: {error}{place}"


def named(error: UserError, row: dict[str, Any]) -> UserError:
    """A complaint with the row that it is about."""
    return UserError(f"row {row[ROW]}: {error}") if ROW in row else error


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(message, dict) for message in value)


def _is_answer(value: Any) -> bool:
    if not isinstance(value, Observation):
        return isinstance(value, str) and bool(value)
    parts = value.parts
    return isinstance(parts, list | tuple) and all(isinstance(part, str) or _is_picture(part) for part in parts)


def _is_picture(value: Any) -> bool:
    from PIL.Image import Image

    return isinstance(value, Picture) and isinstance(value.image, Image)


def _are_named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _are_numbers(value: Any) -> bool:
    return _are_named(value) and all(isinstance(number, Real) for number in value.values())


# What methods may return, and how that is said.
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "prompt": (_are_messages, "a list of messages"),
    "act": (_is_answer, "an Observation of texts and Pictures of PIL images, or a word"),
    "facts": (_are_named, "values by their names"),
    "measures": (_are_numbers, "numbers by their names"),
}

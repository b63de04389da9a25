"""Calls of an environment, whose mistakes are told with the environment and the row."""

import inspect
from collections.abc import Sequence
from typing import Any

from hpt_trl.data.sources import ROW
from hpt_trl.environments.protocol import Environment
from hpt_trl.errors import UserError


def ask(environment: Environment, method: str, row: dict[str, Any], *arguments: Any) -> Any:
    """Calls a method of an environment.

    Args:
        row: that the rollout is of, for the message.

    Raises:
        UserError: it raised something.
    """
    try:
        return getattr(environment, method)(*arguments)
    except UserError as error:
        raise named(error, row) from error
    # What another's environment raises is another's choice.
    except Exception as error:
        frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        told = (
            f"`{method}` of the environment {type(environment).__name__} raised {type(error).__name__}: {error}{place}"
        )
        raise named(UserError(told), row) from error


def columns(found: Sequence[dict[str, Any]], method: str) -> dict[str, list[Any]]:
    """What a method of an environment told of each rollout, by name.

    Raises:
        UserError: not the same names of all.
    """
    for one in found:
        if odd := sorted(one.keys() ^ found[0].keys()):
            raise UserError(f"`{method}` of the environment tells `{odd[0]}` of some rollouts alone; tell it of all.")
    return {name: [one[name] for one in found] for name in found[0]}


def named(error: UserError, row: dict[str, Any]) -> UserError:
    """A complaint with the row that it is about."""
    return UserError(f"row {row[ROW]}: {error}") if ROW in row else error

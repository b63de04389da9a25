"""A guard that turns a faulty reward into a message with its row."""

import functools
import inspect
import logging
import math
from typing import Any
from weakref import WeakSet

from hpt_trl.data.messages import text_of
from hpt_trl.data.reading.places import ROW
from hpt_trl.errors import UserError, place_of_fault
from hpt_trl.rewards.functions import Reward

logger = logging.getLogger(__name__)

_SHOWN = 500

_guarded: WeakSet[Reward] = WeakSet()


def guard(reward: Reward, name: str | None = None) -> Reward:
    """Wrap `reward` so that its faults are reported with the row; it is called `name`, by default as before.

    A value of NaN or infinity is logged with its row and returned as infinity, for the trainer to drop the row. None
    is returned as it is. An async reward stays async, and a guarded reward is returned unchanged.

    Raises (when called):
        UserError: the reward raises, returns another number of values than completions, or something else than
            numbers. The message shows the row, its prompt and its completion.
    """
    from trl.trainer.utils import get_callable_name, is_async_callable

    name = get_callable_name(reward) if name is None else name
    if inspect.isfunction(reward) and reward in _guarded and reward.__name__ == name:
        return reward

    if is_async_callable(reward):

        async def guarded_async(*, prompts: list, completions: list, **columns: Any) -> list[float | None]:
            try:
                values = await reward(prompts=prompts, completions=completions, **columns)
            except UserError:
                raise
            except (Exception, SystemExit) as error:
                index, cause = 0, error
                for row in range(len(prompts)):
                    try:
                        await reward(**_one_row(row, prompts, completions, columns))
                    except (Exception, SystemExit) as single:
                        index, cause = row, single
                        break
                raise _raised(name, index, prompts, completions, columns, cause) from cause
            return _checked(name, values, prompts, completions, columns)

        guarded: Reward = guarded_async
    else:

        def guarded_sync(*, prompts: list, completions: list, **columns: Any) -> list[float | None]:
            try:
                values = reward(prompts=prompts, completions=completions, **columns)
            except UserError:
                raise
            except (Exception, SystemExit) as error:
                index, cause = 0, error
                for row in range(len(prompts)):
                    try:
                        reward(**_one_row(row, prompts, completions, columns))
                    except (Exception, SystemExit) as single:
                        index, cause = row, single
                        break
                raise _raised(name, index, prompts, completions, columns, cause) from cause
            return _checked(name, values, prompts, completions, columns)

        guarded = guarded_sync

    functools.update_wrapper(guarded, reward, updated=())
    guarded.__name__ = name
    _guarded.add(guarded)
    return guarded


def _one_row(row: int, prompts: list, completions: list, columns: dict[str, Any]) -> dict[str, Any]:
    one = {
        key: value[row : row + 1] if isinstance(value, list) and len(value) == len(prompts) else value
        for key, value in columns.items()
    }
    return {"prompts": prompts[row : row + 1], "completions": completions[row : row + 1], **one}


def _describe(index: int, prompts: list, completions: list, columns: dict[str, Any]) -> str:
    row = f"row {columns[ROW][index]}" if ROW in columns else f"position {index + 1} of the batch"
    return f"{row}\n  prompt: {_short(text_of(prompts[index]))}\n  completion: {_short(text_of(completions[index]))}"


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN // 2] + " […] " + text[-_SHOWN // 2 :])


def _raised(
    name: str, index: int, prompts: list, completions: list, columns: dict[str, Any], cause: BaseException
) -> UserError:
    place = place_of_fault(cause)
    return UserError(
        f"the reward `{name}` raised {type(cause).__name__}: {cause}{place}\n"
        f"at {_describe(index, prompts, completions, columns)}"
    )


def _checked(name: str, values: Any, prompts: list, completions: list, columns: dict[str, Any]) -> list[float | None]:
    try:
        values = list(values)
    except TypeError as error:
        raise UserError(
            f"the reward `{name}` returned {values!r}; it must return a list, one number each row."
        ) from error
    if len(values) != len(completions):
        raise UserError(
            f"the reward `{name}` returned {len(values)} values for {len(completions)} completions; it must return one "
            "number (or None) for each."
        )
    checked: list[float | None] = []
    for index, value in enumerate(values):
        if value is None:
            checked.append(None)
            continue
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the reward `{name}` returned {value!r}, which is not a number, "
                f"at {_describe(index, prompts, completions, columns)}"
            ) from error
        if not math.isfinite(number):
            logger.warning(
                "the reward `%s` is %s; the row is not trained on: %s",
                name,
                number,
                _describe(index, prompts, completions, columns),
            )
            number = math.inf
        checked.append(number)
    return checked

"""Rewards by name or dotted path, and a guard that turns a faulty reward into a message.

A reward has TRL's signature: `reward(prompts, completions, completion_ids, **columns) -> list[float | None]`, where a
completion is a string or a list of messages and None means that the reward does not apply to the row.
"""

import difflib
import functools
import inspect
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any
from weakref import WeakSet

from hpt_trl.data.final_answers import BOXED, HASHES, final_answer, final_answers
from hpt_trl.data.messages import text_of
from hpt_trl.errors import UserError
from hpt_trl.rewards.mathcheck import equal_answers

logger = logging.getLogger(__name__)

Reward = Callable[..., Any]

_SHOWN = 500

# Rewards are added up in float32 by the trainers: 0.7 + 0.2 + 0.1 must still reach a threshold of 1.
THRESHOLD_SLACK = 1e-6
_guarded: WeakSet[Reward] = WeakSet()


def math_answer(completions: Sequence[Any], answer: Sequence[Any] | None = None, **_: Any) -> list[float | None]:
    r"""1.0 where the last `\boxed{...}` or `#### ...` of the completion equals column `answer`, else 0.0.

    Equal as text, as numbers or by math-verify. None where the row has no answer.

    Raises:
        UserError: the data has no column `answer`.
    """
    golds = _required("math_answer", "answer", answer)
    rewards: list[float | None] = []
    for completion, gold in zip(completions, golds, strict=True):
        if gold is None:
            rewards.append(None)
            continue
        given = final_answer(text_of(completion))
        rewards.append(float(given is not None and equal_answers(str(gold), given)))
    return rewards


def exact_match(completions: Sequence[Any], answer: Sequence[Any] | None = None, **_: Any) -> list[float | None]:
    """1.0 where the whole completion, without the space around it, is column `answer`; None where there is none.

    Raises:
        UserError: the data has no column `answer`.
    """
    golds = _required("exact_match", "answer", answer)
    return [
        None if gold is None else float(text_of(completion).strip() == str(gold).strip())
        for completion, gold in zip(completions, golds, strict=True)
    ]


def boxed_format(completions: Sequence[Any], **_: Any) -> list[float]:
    r"""1.0 where the completion gives exactly one final answer, as `\boxed{...}` or as a line `#### ...`."""
    return [float(_count_answers(text_of(completion)) == 1) for completion in completions]


def reasoning_gym(completions: Sequence[Any], metadata: Sequence[str] | None = None, **_: Any) -> list[float]:
    r"""The score that the reasoning-gym task itself gives, from 0 to 1.

    Scored is the text after the last line start `####`, or in the last `\boxed{...}`, or else the whole completion.

    Raises:
        UserError: the data has no column `metadata`, as datasets `reasoning_gym:<task>` have it.
    """
    from hpt_trl.data.tasks import score_reasoning_gym

    rows = _required("reasoning_gym", "metadata", metadata)
    scorers: dict[str, Any] = {}
    return [
        score_reasoning_gym(_free_answer(text_of(completion)), row, scorers)
        for completion, row in zip(completions, rows, strict=True)
    ]


def story_score(
    completions: Sequence[Any], hero: Sequence[str] | None = None, thing: Sequence[str] | None = None, **_: Any
) -> list[float]:
    """The true reward of a story of `stories:<part>`, from 0 to 1 (see `hpt_trl.data.stories.score_story`).

    Raises:
        UserError: the data has no columns `hero` and `thing`.
    """
    from hpt_trl.data.stories import score_story

    heroes, things = _required("story_score", "hero", hero), _required("story_score", "thing", thing)
    return [
        score_story(text_of(completion), *pair) for completion, *pair in zip(completions, heroes, things, strict=True)
    ]


REWARDS: dict[str, Reward] = {
    "math_answer": math_answer,
    "exact_match": exact_match,
    "boxed_format": boxed_format,
    "reasoning_gym": reasoning_gym,
    "story_score": story_score,
}
REQUIRED_COLUMNS = {
    "math_answer": "answer",
    "exact_match": "answer",
    "reasoning_gym": "metadata",
    "story_score": "hero",
}
# Rewards that score one family of generated datasets.
_DATASETS = {"reasoning_gym": "reasoning_gym:<task>", "story_score": "stories:<part>"}


def load_rewards(names: Sequence[str]) -> list[Reward]:
    """Return the rewards of `names`, each a key of `REWARDS` or the dotted path of a function.

    Dotted paths are also looked up in the working directory, as `python -m` does.

    Raises:
        UserError: no names, an unknown name, or a dotted path that cannot be imported or called.
    """
    if not names:
        raise UserError(f"reward_funcs: name at least one reward ({', '.join(REWARDS)}, or a dotted path).")
    return [REWARDS[name] if name in REWARDS else _import_reward(name) for name in names]


def check_columns(names: Sequence[str], columns: Sequence[str], source: str) -> None:
    """Check that the data has the columns that the named rewards read.

    Raises:
        UserError: a column is missing.
    """
    for name in names:
        column = REQUIRED_COLUMNS.get(name)
        if column is not None and column not in columns:
            raise UserError(_missing_column(name, column, f"{source} has only {', '.join(columns)}"))


def columns_read(rewards: Sequence[Reward]) -> set[str] | None:
    """Return the columns that rewards read by their signatures; None where one may read any (`**columns`)."""
    read: set[str] = set()
    for reward in rewards:
        parameters = inspect.signature(reward).parameters.values()
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        # The bundled ones take what they do not read.
        if takes_any and reward not in REWARDS.values():
            return None
        read.update(parameter.name for parameter in parameters)
    return read


def guard(reward: Reward) -> Reward:
    """Wrap `reward` so that its faults are reported with the row; the name stays.

    A value of NaN or infinity is logged with its row and returned as infinity, for the trainer to drop the row. None
    is returned as it is. An async reward stays async, and a guarded reward is returned unchanged.

    Raises (when called):
        UserError: the reward raises, returns another number of values than completions, or something else than
            numbers. The message shows the row, its prompt and its completion.
    """
    from trl.trainer.utils import get_callable_name, is_async_callable

    if inspect.isfunction(reward) and reward in _guarded:
        return reward
    name = get_callable_name(reward)

    if is_async_callable(reward):

        async def guarded_async(*, prompts: list, completions: list, **columns: Any) -> list[float | None]:
            try:
                values = await reward(prompts=prompts, completions=completions, **columns)
            except UserError:
                raise
            except Exception as error:
                index, cause = 0, error
                for row in range(len(prompts)):
                    try:
                        await reward(**_one_row(row, prompts, completions, columns))
                    except Exception as single:
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
            except Exception as error:
                index, cause = 0, error
                for row in range(len(prompts)):
                    try:
                        reward(**_one_row(row, prompts, completions, columns))
                    except Exception as single:
                        index, cause = row, single
                        break
                raise _raised(name, index, prompts, completions, columns, cause) from cause
            return _checked(name, values, prompts, completions, columns)

        guarded = guarded_sync

    functools.update_wrapper(guarded, reward, updated=())
    guarded.__name__ = name
    _guarded.add(guarded)
    return guarded


def _required(reward: str, column: str, values: Sequence[Any] | None) -> Sequence[Any]:
    if values is None:
        raise UserError(_missing_column(reward, column, "the data has no such column"))
    return values


def _missing_column(reward: str, column: str, found: str) -> str:
    if reward in _DATASETS:
        return f"reward_funcs: `{reward}` scores datasets `{_DATASETS[reward]}` only ({found})."
    return (
        f"reward_funcs: `{reward}` reads the column `{column}` ({found}). Name the column that holds it, e.g. "
        f"column_mapping: {{{column}: solution}}"
    )


def _count_answers(text: str) -> int:
    """Count the final answers; a box on a `####` line belongs to that line."""
    lines = {text.count("\n", 0, place) for place, _ in final_answers(text)}
    boxes = [place for place, _ in final_answers(text) if text[:place].endswith(BOXED)]
    return max(len(lines), len(boxes))


def _free_answer(text: str) -> str:
    marks = list(HASHES.finditer(text))
    if marks:
        # Answers of puzzles have many lines.
        return text[marks[-1].start(1) :].strip()
    answer = final_answer(text)
    return text.strip() if answer is None else answer


def _import_reward(name: str) -> Reward:
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        near = difflib.get_close_matches(name, REWARDS, n=1)
        hint = f"Did you mean `{near[0]}`? " if near else ""
        raise UserError(
            f"reward_funcs: unknown reward `{name}`. {hint}Known: {', '.join(REWARDS)}; your own function goes by its "
            "dotted path, e.g. my_package.rewards.brevity"
        )
    # A console script does not have the working directory on its path, `python -m` does.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = import_module(module_name)
    # The user's module may raise anything while it is imported.
    except Exception as error:
        raise UserError(
            f"reward_funcs: `{name}`: the module {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    members = vars(module)
    if attribute not in members:
        functions = [key for key, value in members.items() if inspect.isfunction(value)]
        near = difflib.get_close_matches(attribute, functions, n=1) or functions[:5]
        raise UserError(
            f"reward_funcs: `{name}`: {module_name} has no `{attribute}`"
            + (f"; it has {', '.join(near)}." if near else ".")
        )
    reward = members[attribute]
    if inspect.isclass(reward) or not callable(reward):
        kind = "a class; name a function or an instance" if inspect.isclass(reward) else "not callable; name a function"
        raise UserError(f"reward_funcs: `{name}` is {kind} with the signature (prompts, completions, **columns).")
    return reward


def _one_row(row: int, prompts: list, completions: list, columns: dict[str, Any]) -> dict[str, Any]:
    one = {
        key: value[row : row + 1] if isinstance(value, list) and len(value) == len(prompts) else value
        for key, value in columns.items()
    }
    return {"prompts": prompts[row : row + 1], "completions": completions[row : row + 1], **one}


def _describe(index: int, prompts: list, completions: list, columns: dict[str, Any]) -> str:
    row = f"row {columns['row'][index]}" if "row" in columns else f"position {index + 1} of the batch"
    return f"{row}\n  prompt: {_short(text_of(prompts[index]))}\n  completion: {_short(text_of(completions[index]))}"


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN // 2] + " […] " + text[-_SHOWN // 2 :])


def _raised(
    name: str, index: int, prompts: list, completions: list, columns: dict[str, Any], cause: Exception
) -> UserError:
    frames = inspect.getinnerframes(cause.__traceback__) if cause.__traceback__ else []
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
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

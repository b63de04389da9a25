"""Calls of an environment, whose mistakes are told with the environment and the row."""

import re
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from hpt_trl.data.reading.places import ROW, where
from hpt_trl.data.row_checks import ROLES
from hpt_trl.environments.protocol import Environment, Observation, Picture
from hpt_trl.errors import UserError, place_of_fault

# What rewards are handed by these names already.
TAKEN = (
    "prompt",
    "prompts",
    "completion",
    "completions",
    "completion_ids",
    "trainer_state",
    "environments",
    "log_extra",
    "log_metric",
)

_OF_ROW = re.compile(r"row (\d+): ")


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
    # What another's environment raises is another's choice; one that leaves the process would end a run without a word.
    except (Exception, SystemExit) as error:
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


def raised(error: BaseException) -> str:
    """What was raised, and in which line."""
    return f"raised {type(error).__name__}: {error}{place_of_fault(error)}"


def named(error: UserError, row: dict[str, Any]) -> UserError:
    """A complaint with the row that it is about, once."""
    return error if ROW not in row or _OF_ROW.match(str(error)) else UserError(f"row {row[ROW]}: {error}")


def placed(error: UserError, sources: Sequence[str]) -> UserError:
    """A complaint of `named` with the data that the row is of, which trainers do not know.

    Args:
        sources: names of the data; of several the row may be of any.
    """
    found = _OF_ROW.match(str(error))
    if found is None:
        return error
    places = [where(source, int(found[1])) for source in dict.fromkeys(sources)]
    return UserError(f"{' or '.join(places)}: {str(error)[found.end() :]}")


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_message(message) for message in value)


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("role") not in ROLES:
        return False
    return isinstance(value.get("content"), str | list) or bool(value.get("tool_calls"))


def _is_answer(value: Any) -> bool:
    if not isinstance(value, Observation):
        return isinstance(value, str) and bool(value)
    parts = value.parts
    if not isinstance(value.folded, str | None) or value.role not in ("user", "tool"):
        return False
    if not isinstance(value.name, str | None):
        return False
    return isinstance(parts, list | tuple) and all(isinstance(part, str) or _is_picture(part) for part in parts)


def _is_picture(value: Any) -> bool:
    from PIL.Image import Image

    if not isinstance(value, Picture) or not isinstance(value.image, Image):
        return False
    if (
        value.image.mode != "RGB"
        or 0 in value.image.size
        or not (value.raw_size is None or _are_sides(value.raw_size, 2))
    ):
        return False
    named = isinstance(value.name, str) and isinstance(value.kind, str) and bool(value.kind)
    return named and (value.box is None or _are_sides(value.box, 4))


def _are_sides(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and all(isinstance(side, Real) for side in value)


def _are_named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _are_facts(value: Any) -> bool:
    return _are_named(value) and value.keys().isdisjoint(TAKEN)


def _are_numbers(value: Any) -> bool:
    # Metrics of the trainers' own have names without a slash.
    return _are_named(value) and all("/" in name and isinstance(number, Real) for name, number in value.items())


# What methods may return, and how that is said.
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "prompt": (_are_messages, f"a list of messages, each with `role` ({', '.join(ROLES)}) and `content`"),
    "act": (
        _is_answer,
        "an Observation of texts and Pictures of PIL images (RGB, of a pixel at least), of the role user "
        "or tool, or a word; see hpt_trl.environments.protocol",
    ),
    "facts": (_are_facts, f"values by their names, none of which is {', '.join(TAKEN)}"),
    "measures": (_are_numbers, "numbers by their names, each with a group before a slash, e.g. `shop/bought`"),
}
